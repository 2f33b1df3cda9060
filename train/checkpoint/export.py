"""`lmms export`: a checkpoint as a Hugging Face folder that from_pretrained loads, or a PEFT adapter; in one process,
on the CPU."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from lmms.configs.errors import ModelError, TrainError
from lmms.configs.settings.lora import LoraConfig
from lmms.train.checkpoint.adapter import unlike, write_adapter
from lmms.train.checkpoint.initial import checked_base, fill_base
from lmms.train.checkpoint.pretrained import differing
from lmms.train.checkpoint.read import (
    TrainerState,
    load_checkpoint,
    model_shapes,
    read_state,
    tensors_of,
)
from lmms.train.model.build import materialize
from lmms.train.model.folder import model_of
from lmms.train.model.lora import add_lora, merge_lora

_COPIED = ("*.json", "*.jinja", "*.txt")
"""Tokenizer, template, processor, generation settings: as they stand in the model folder."""


def export(checkpoint: Path, out: Path, dtype: Literal["fp32", "bf16"] = "fp32", merged: bool = False) -> Path:
    """Write the weights of a checkpoint, with what belongs to its model, as the folder `out`; returns it.

    fp32 are the master weights bit for bit; bf16 are those that a bf16 run computes with, in half the space. Of a run
    with LoRA the folder is a PEFT adapter, or with `merged` a whole model. It is written beside its place, read again,
    compared and renamed: it is whole or not there. TrainError if `out` exists.
    """
    if out.exists():
        raise TrainError(f"{out} exists; name a folder that does not")
    state = read_state(checkpoint)
    source = Path(state.model)
    if not (source / "config.json").is_file():
        raise ModelError(f"{source}, the model folder of {checkpoint}, is not there any more; put it back to export")
    train, lora = state.config["train"], LoraConfig(**_as_tuples(state.config["lora"]))
    has_lora = "lora" in train.values()
    if merged and not has_lora:
        raise TrainError(f"{checkpoint} holds no LoRA: there is nothing to merge; leave --merged out")
    model = model_of(source, "none")
    add_lora(model, train, lora)
    materialize(model, torch.device("cpu"))
    held = model_shapes(checkpoint).keys()
    if not {name for name, _ in model.named_parameters()} <= held:
        fill_base(checked_base(state, checkpoint), model, state.seed)
    load_checkpoint(checkpoint, tensors_of(model, None, held), alone=True)
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    if has_lora and not merged:
        name = _base_name(state)
        with _written(out) as part:
            part.mkdir()
            write_adapter(model, held, lora, name, kind, part)
            _refuse_unlike(out, unlike(part, model_of(source, "none")))
        return out
    if has_lora:
        merge_lora(model)
    model.hf.to(kind)
    with _written(out) as part:
        model.hf.save_pretrained(part)
        for path in sorted(path for pattern in _COPIED for path in source.glob(pattern)):
            if path.name != "config.json" and not path.name.endswith(".index.json"):
                shutil.copyfile(path, part / path.name)
        _refuse_unlike(out, differing(model.hf, part))
    return out


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """A folder to write that becomes `out` at the end of the block; TrainError if it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as room:
            # Inside it and not the room itself, which only its owner may enter.
            part = Path(room) / out.name
            yield part
            part.rename(out)
    except (OSError, SafetensorError) as error:
        raise TrainError(f"{out} could not be written: {error}") from error


def _refuse_unlike(out: Path, names: Sequence[str]) -> None:
    if names:
        raise TrainError(f"{out}: {names[0]} was read back as something else ({len(names)} tensors in all)")


def _base_name(state: TrainerState) -> str:
    """Where an adapter says that its base is: a hub id where the run was given one. TrainError for random numbers."""
    given = Path(state.config["model"]["path"]).expanduser()
    if not state.base["path"]:
        raise TrainError(
            f"the adapter belongs on {state.base['digest'] or 'weights that checkpoints hold'}, which nobody else has;"
            " export --merged"
        )
    if state.base["path"] == state.model and not given.is_dir():
        return str(given)
    return state.base["path"]


def _as_tuples(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with tuples for the lists that JSON makes of them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
