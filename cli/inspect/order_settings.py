"""The settings for `lmms inspect order`: from a run file, a run that goes on, or shards and options."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms.configs.contract.manifest import read_manifest
from lmms.configs.errors import ConfigError
from lmms.configs.load import load_config
from lmms.configs.settings.train import EVERYTHING, TrainConfig
from lmms.configs.stores.store import open_store

_RETRY_S = 120.0
_DATA = {"--global-batch": "global_packs", "--micro": "micro_packs", "--workers": "workers", "--group": "group_packs"}
"""Options that are settings of data."""


def order_settings(
    places: Sequence[str], config: Path | None, options: Mapping[str, Any], epochs: int
) -> tuple[TrainConfig, Path | None]:
    """The settings of the run, and its output folder if the run goes on from there.

    places: shards, or the output folder of a run. config: its run file, by default the file in that folder.
    options: the other options, None if not given. ConfigError for two sources of the same setting.
    """
    run = Path(places[0]).expanduser() if places else None
    if run and not (run / "phases.json").is_file():
        run = None
    if not config and not run:
        return _of_shards(places, options, epochs), None
    given = [*(places[1:] if run else places), *(name for name, value in options.items() if value not in (None, []))]
    if given:
        raise ConfigError(
            f"{', '.join(given)}: the settings of a run say which packs and how; leave this out, or the run"
        )
    assert config or run
    return load_config(TrainConfig, config or Path(run or "", "config.yaml")), run


def _of_shards(places: Sequence[str], options: Mapping[str, Any], epochs: int) -> TrainConfig:
    """A run of `epochs` passes over these shards, with each shard folder in proportion to its packs."""
    if not places:
        raise ConfigError("nothing is named; expected shard folders, the output folder of a run, or --config FILE")
    if options["--global-batch"] is None:
        raise ConfigError("--global-batch is not given; expected the packs of a step")
    frozen = dict.fromkeys(options["--freeze"], "frozen")
    values = {
        "model.path": options["--model"] or read_manifest(open_store(places[0], _RETRY_S)).model,
        "data.mixture": [{"shards": place, "epochs": 1.0} for place in places],
        **{f"data.{name}": options[option] for option, name in _DATA.items() if options[option] is not None},
        "output": "nowhere",
        "max_epochs": float(epochs),
        "train": {**EVERYTHING, **frozen},
        "seed": options["--seed"] or 0,
    }
    return load_config(TrainConfig, None, values=values)
