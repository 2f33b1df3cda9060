"""Settings of a run that cannot work are refused when they are read."""

import pytest

from lmms.configs.errors import ConfigError
from lmms.configs.load import load_config
from lmms.configs.train import TrainConfig

NEEDED = {"model.path": "m", "data.shards": "s", "output": "o", "max_steps": 1}


@pytest.mark.parametrize("betas", [[0.9, 1.0], [-0.1, 0.9], [1.5, 0.9]])
def test_averaging_constants_outside_their_range_are_refused(betas: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"optim\.betas is \["):
        load_config(TrainConfig, None, values={**NEEDED, "optim.betas": betas})


def test_averaging_constants_may_be_0() -> None:
    assert load_config(TrainConfig, None, values={**NEEDED, "optim.betas": [0.0, 0.0]}).optim.betas == (0.0, 0.0)
