"""The boards of a run: what contradicts is refused with the key."""

import pytest

from lmms.configs.errors import ConfigError
from lmms.configs.settings.log import LogConfig


@pytest.mark.parametrize("settings", [{"wandb_name": "first"}, {"wandb_mode": "offline"}])
def test_settings_of_wandb_without_a_project_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"log\.wandb_name or log\.wandb_mode is set, but log\.wandb is not"):
        LogConfig(**settings)  # type: ignore[arg-type]
