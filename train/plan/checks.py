"""Checks of a run that need no torch and no transformers: an error comes within a second.

The run checks everything again, on its ranks; here the errors come before large packages are loaded.
"""

import json
import os
import shutil
from contextlib import suppress
from importlib import import_module
from math import prod
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlsplit

from lmms.configs.by_part import check_parts
from lmms.configs.contract.families import FAMILIES
from lmms.configs.contract.manifest import Dataset, open_dataset
from lmms.configs.errors import ConfigError, ModelError, TrainError
from lmms.configs.room import size_text
from lmms.configs.settings.log import LogConfig, wandb_mode
from lmms.configs.settings.train import TrainConfig
from lmms.configs.stores.store import is_url
from lmms.train.checkpoint.files import named_checkpoint
from lmms.train.plan.fit import check_one_template, fitting_model

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
"""A model folder has one of these files: all weights, or the list of the files that hold them."""

_WEIGHT_BYTES = 4
"""Bytes of a master weight in a checkpoint."""
_AVERAGE_BYTES = {"adamw": 8, "adamw-bf16": 4, "adamw-8bit": 2, "muon": 4}
"""Bytes that each rule's averages need for a weight, at least."""
_NOT_COUNTED = ("__metadata__", "lm_head.weight")
_LONGEST_HEADER = 100 * 2**20
"""The longest header that safetensors reads."""


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
        parts = FAMILIES[fitting_model(config.model.path, dataset).family].parts
        check_parts("train", config.train, parts)
        check_parts("optim.lr", config.optim.lr, parts)
    check_one_template(datasets)
    starts = config.resume == "never" or not any(output.glob("step-*"))
    reads_weights = config.model.init == "pretrained" and config.model.init_from is None
    if starts and reads_weights and not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise ModelError(
            f"{folder} has no {' or '.join(WEIGHT_FILES)}; to start from random weights, set model.init: random"
        )
    if all(how == "full" for how in config.train.values()):
        _check_space(output, _parameters(folder) * (_WEIGHT_BYTES + _AVERAGE_BYTES[config.optim.name]))


def _check_space(output: Path, needed: int) -> None:
    """TrainError where the disk has no room for one checkpoint of this many bytes."""
    nearest = next(path for path in (output, *output.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise TrainError(
            f"output {output}: a checkpoint of this run has at least {size_text(needed)}, but the disk of {nearest} has"
            f" {size_text(free)} free; make room, or choose another folder"
        )


def _parameters(folder: Path) -> int:
    """Numbers in the weights of a model folder, by the headers of its files; 0 where it has none.

    The format of safetensors: 8 bytes with the length of a JSON header, then the header. A head is left out, since it
    may be the embedding once more.
    """
    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            # What is wrong with the file is for the loading of weights to say.
            with suppress(ValueError, AttributeError, KeyError, TypeError):
                header = json.loads(opened.read(min(size, _LONGEST_HEADER)))
                count += sum(prod(entry["shape"]) for name, entry in header.items() if name not in _NOT_COUNTED)
    return count
