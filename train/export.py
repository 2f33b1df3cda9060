"""`lmms export`: a checkpoint as a Hugging Face folder that from_pretrained loads, in one process, on the CPU."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from safetensors import SafetensorError

from lmms.configs.errors import ModelError, TrainError
from lmms.configs.load import load_config
from lmms.configs.train import TrainConfig
from lmms.train.checkpoint import list_checkpoints, load_checkpoint, read_state, tensors_of
from lmms.train.fit import model_of
from lmms.train.model import materialize
from lmms.train.retention import BEST_NAME, best_checkpoint

CONFIG_NAME = "config.yaml"
"""In a run's output folder: its resolved config."""

_COPIED = ("*.json", "*.jinja", "*.txt")
"""Tokenizer, template, processor, generation settings: as they stand in the model folder."""


def choose_checkpoint(folder: Path) -> tuple[Path, str]:
    """(The checkpoint to export, why it is that one): the folder itself, or of a run's output folder one in it.

    That is the best one where the run has load_best_model_at_end, else the newest complete one. TrainError if there is
    none, or the best one is gone.
    """
    if not (folder / CONFIG_NAME).is_file():
        return folder, ""
    complete, _ = list_checkpoints(folder)
    if not complete:
        raise TrainError(f"{folder} is the folder of a run, but holds no complete checkpoint yet")
    if not load_config(TrainConfig, folder / CONFIG_NAME).load_best_model_at_end:
        return complete[-1], "the newest complete checkpoint of this run"
    if (best := best_checkpoint(folder)) is not None:
        return best, f"the best checkpoint of this run by {BEST_NAME}"
    return complete[-1], f"the newest complete checkpoint of this run, which has no {BEST_NAME} yet"


def export(checkpoint: Path, out: Path, dtype: Literal["fp32", "bf16"] = "fp32") -> Path:
    """Write the weights of a checkpoint, with what belongs to its model, as the folder `out`; returns it.

    fp32 are the master weights bit for bit; bf16 are those that a bf16 run computes with, in half the space. The folder
    is written beside its place and renamed: it is whole or not there. TrainError if `out` exists.
    """
    if out.exists():
        raise TrainError(f"{out} exists; name a folder that does not")
    source = Path(read_state(checkpoint).model)
    if not (source / "config.json").is_file():
        raise ModelError(f"{source}, the model folder of {checkpoint}, is not there any more; put it back to export")
    model = model_of(source, "none")
    materialize(model, torch.device("cpu"))
    load_checkpoint(checkpoint, tensors_of(model, None), alone=True)
    model.hf.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as room:
            # Inside it and not the room itself, which only its owner may enter.
            part = Path(room) / out.name
            model.hf.save_pretrained(part)
            for path in sorted(path for pattern in _COPIED for path in source.glob(pattern)):
                if path.name != "config.json" and not path.name.endswith(".index.json"):
                    shutil.copyfile(path, part / path.name)
            part.rename(out)
    except (OSError, SafetensorError) as error:
        raise TrainError(f"{out} could not be written: {error}") from error
    return out
