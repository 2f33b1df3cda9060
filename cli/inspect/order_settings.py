"""The settings for `lmms inspect order`: from a run file, a run that goes on, or shards."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from lmms.cli.settings import read_settings
from lmms.configs.errors import ConfigError
from lmms.configs.load import load_config
from lmms.configs.settings.train import TrainConfig

_RETRY_S = 120.0
_LENGTHS = ("max_steps", "max_epochs", "max_tokens")


def order_settings(
    words: Sequence[str], config: Path | None, epochs: int, options: Collection[str]
) -> tuple[TrainConfig, Path | None]:
    """The settings of the run, and its output folder if the run goes on from there.

    words: shards, the output folder of a run or a run file, and settings as `lmms train` takes them. config: the run
    file, by default the file in the run's folder. options: those of the command. ConfigError for a run that is named
    with shards, or for nothing.
    """
    others, settings = read_settings(words, TrainConfig, options)
    files = [*([config] if config else []), *(Path(word) for word in others if Path(word).is_file())]
    places = [word for word in others if not Path(word).is_file()]
    runs = [Path(place).expanduser() for place in places if (Path(place).expanduser() / "phases.json").is_file()]
    if not files and not runs:
        return _of_shards(places, settings, epochs), None
    if len(files) > 1 or len(runs) > 1 or len(places) > len(runs):
        raise ConfigError(
            f"{', '.join([*map(str, files), *places])}: expected one run, as its file, its output folder or both, or"
            " shard folders alone: a run says which shards it reads, and KEY=VALUE changes that"
        )
    run = runs[0] if runs else None
    return load_config(TrainConfig, files[0] if files else Path(run or "", "config.yaml"), settings), run


def _of_shards(places: Sequence[str], settings: Sequence[str], epochs: int) -> TrainConfig:
    """A run of `epochs` passes over these shards, with each shard folder in proportion to its packs."""
    if not places:
        raise ConfigError("nothing is named; expected shard folders, the output folder of a run, or its run file")
    from lmms.configs.contract.manifest import read_manifest
    from lmms.configs.stores.store import open_store

    named = {setting.partition("=")[0] for setting in settings}
    mixture = [{"shards": place, "epochs": 1.0} for place in places]
    unless_named = [
        *([] if named & {"model.path"} else [f"model.path={read_manifest(open_store(places[0], _RETRY_S)).model}"]),
        *([] if named & set(_LENGTHS) else [f"max_epochs={epochs}"]),
        *([] if named & {"output"} else ["output=."]),
    ]
    return load_config(TrainConfig, None, [f"data.mixture={json.dumps(mixture)}", *unless_named, *settings])
