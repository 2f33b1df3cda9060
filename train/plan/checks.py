"""Checks of a run that need no torch and no transformers: an error comes within a second.

The run checks everything again, on its ranks; here the errors come before large packages are loaded.
"""

import os
from importlib import import_module
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlsplit

from lmms.configs.contract.manifest import Dataset, open_dataset
from lmms.configs.errors import ConfigError, ModelError, TrainError
from lmms.configs.settings.log import LogConfig, wandb_mode
from lmms.configs.settings.train import TrainConfig
from lmms.configs.stores.store import is_url
from lmms.train.checkpoint.files import named_checkpoint
from lmms.train.data.fit import check_one_template, fitting_model

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
"""A model folder has one of these files: all weights, or the list of the files that hold them."""


def check_run(config: TrainConfig) -> None:
    """Raise a subclass of LmmsError for paths, shards, model folder and boards that a run cannot use.

    Places behind a URL and hub ids are left to the run.
    """
    output = Path(config.output).expanduser()
    check_output(output)
    if config.resume not in ("auto", "never"):
        named_checkpoint(config.resume)
    check_boards(config.log)
    places = [share.shards for share in config.data.shares] + ([config.eval.shards] if config.eval else [])
    datasets = [open_dataset(place) for place in places if not is_url(place)]
    _check_model(config, output, datasets)


def check_output(output: Path) -> None:
    """TrainError where a run could not make this folder, or could not write into this folder."""
    nearest = next(path for path in (output, *output.parents) if path.exists())
    fault = "not a folder" if not nearest.is_dir() else "" if os.access(nearest, os.W_OK | os.X_OK) else "read-only"
    if fault:
        raise TrainError(f"output {output} cannot be opened as a folder: {nearest} is {fault}")


def check_boards(config: LogConfig) -> None:
    """ConfigError where a board that is asked for lacks its package, or wandb its login."""
    for name, wanted in (("tensorboard", config.tensorboard), ("wandb", config.wandb)):
        if wanted:
            try:
                import_module(name)
            except ImportError as error:
                raise ConfigError(
                    f"log.{name} is set, but the package {name} cannot be imported ({error});"
                    f" `pip install 'lmms[{name}]'`, or leave log.{name} out"
                ) from error
    if config.wandb and wandb_mode(config) == "online" and not _has_wandb_login():
        raise ConfigError(
            "log.wandb is set, but there is no login for wandb; run `wandb login`, set WANDB_API_KEY, or set"
            " log.wandb_mode to offline"
        )


def _has_wandb_login() -> bool:
    """Whether wandb would find a key: in the environment, or for its server in the netrc file."""
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    if (Path.home() / ".config" / "wandb" / "settings").is_file():
        # It may name another server: wandb itself has to say.
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    places = (os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc")
    try:
        return any(host in netrc(path).hosts for path in places if path and Path(path).is_file())
    except (NetrcParseError, OSError):
        return False


def _check_model(config: TrainConfig, output: Path, datasets: list[Dataset]) -> None:
    folder = Path(config.model.path).expanduser()
    if not folder.is_dir() and config.model.path.count("/") == 1 and config.model.path[0] not in "./~":
        return
    for dataset in datasets:
        fitting_model(config.model.path, dataset)
    check_one_template(datasets)
    starts = config.resume == "never" or not any(output.glob("step-*"))
    reads_weights = config.model.init == "pretrained" and config.model.init_from is None
    if starts and reads_weights and not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise ModelError(
            f"{folder} has no {' or '.join(WEIGHT_FILES)}; to start from random weights, set model.init: random"
        )
