"""`lmms export`: a checkpoint as a Hugging Face folder that from_pretrained loads, in one process, on the CPU."""

import shutil
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoConfig

from lmms.configs.errors import ModelError, TrainError
from lmms.train.checkpoint import load_checkpoint, read_state, tensors_of
from lmms.train.model import build_model, materialize

_COPIED = ("*.json", "*.jinja", "*.txt")
"""Tokenizer, template, processor, generation settings: as they stand in the model folder."""


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
    model = build_model(AutoConfig.from_pretrained(source), "none")
    materialize(model, torch.device("cpu"))
    load_checkpoint(checkpoint, tensors_of(model, None), alone=True)
    model.hf.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    part = out.with_name(out.name + ".part")
    try:
        if part.exists():
            shutil.rmtree(part)
        model.hf.save_pretrained(part)
        for path in sorted(path for pattern in _COPIED for path in source.glob(pattern)):
            if path.name != "config.json" and not path.name.endswith(".index.json"):
                shutil.copyfile(path, part / path.name)
        part.rename(out)
    except OSError as error:
        raise TrainError(f"{out} could not be written: {error}") from error
    return out
