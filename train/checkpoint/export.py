"""`lmms export`: a checkpoint as a Hugging Face folder that from_pretrained loads, or a PEFT adapter; in one process,
on the CPU."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from lmms.configs.contract.model_folder import TRAIN_FILES, read_model_folder, resolve_model
from lmms.configs.errors import ModelError, TrainError
from lmms.configs.files import new_folder
from lmms.configs.room import no_room
from lmms.configs.settings.train import ExportType
from lmms.train.checkpoint.adapter import unlike, write_adapter
from lmms.train.checkpoint.files import check_export
from lmms.train.checkpoint.initial import checked_base, fill_base
from lmms.train.checkpoint.model_folder import copy_around, write_config, write_weights
from lmms.train.checkpoint.pretrained import check_pretrained, differing
from lmms.train.checkpoint.read import (
    load_checkpoint,
    model_shapes,
    read_state,
    tensors_of,
)
from lmms.train.checkpoint.state import Base, TrainerState, lora_of, train_of
from lmms.train.model.build import materialize
from lmms.train.model.folder import model_of
from lmms.train.model.forward import TrainModel
from lmms.train.model.lora import add_lora, merge_lora


def export(
    checkpoint: Path,
    out: Path,
    dtype: ExportType = "fp32",
    merged: bool = False,
    model: str | None = None,
) -> Path:
    """Write the weights of a checkpoint, with the other files of its model, as the folder `out`, which is returned.

    fp32: the master weights bit for bit; bf16: the weights that a bf16 run computes with, in half the space. For a run
    with LoRA the folder is a PEFT adapter, or with `merged` a whole model. `model` is a folder or hub id that has the
    run's model now, if the model has moved. The folder is read again, compared and renamed: it is whole or not there.
    TrainError if `out` exists; ModelError for a model that is not the run's.
    """
    check_export(checkpoint, out)
    state = read_state(checkpoint)
    source = _model_folder(state, checkpoint, model)
    train, lora = train_of(state), lora_of(state)
    has_lora = "lora" in train.values()
    if merged and not has_lora:
        raise TrainError(f"{checkpoint} holds no LoRA: there is nothing to merge; leave --merged out")
    trained = model_of(source, "none")
    add_lora(trained, train, lora)
    materialize(trained, torch.device("cpu"))
    checkpointed = model_shapes(checkpoint).keys()
    reads_base = not {name for name, _ in trained.named_parameters()} <= checkpointed
    base = checked_base(state, checkpoint, source) if reads_base else state.base
    if reads_base:
        fill_base(base, trained, state.seed)
    load_checkpoint(checkpoint, tensors_of(trained, None, checkpointed), alone=True)
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    if has_lora and not merged:
        name = _base_name(base, source, model or state.config["model"]["path"])
        with _written(out, _bytes(trained, kind, checkpointed)) as part:
            copy_around(source, part, state.chat_template)
            write_adapter(trained, checkpointed, lora, name, kind, part)
            _refuse_unlike(out, unlike(part, model_of(source, "none")))
        return out
    if has_lora:
        merge_lora(trained)
    trained.hf.to(kind)
    with _written(out, _bytes(trained, kind, None)) as part:
        copy_around(source, part, state.chat_template)
        write_config(source, kind, part, type(trained.hf).__name__)
        write_weights(trained.hf, _with_weights(source, base), part)
        check_pretrained(model_of(part, "none").hf, part)
        _refuse_unlike(out, differing(trained.hf, part))
    return out


def _model_folder(state: TrainerState, checkpoint: Path, model: str | None) -> Path:
    """The folder of the run's model: the old place, or `model`. ModelError if no folder or another model is there."""
    folder = resolve_model(model, TRAIN_FILES) if model else Path(state.model)
    if not (folder / "config.json").is_file():
        given = state.config["model"]["path"]
        raise ModelError(
            f"{folder}, the model folder of {checkpoint}, is not there; put it back, or say where it is now:"
            f" --model DIR{'' if Path(given).is_absolute() else f', or --model {given}'}"
        )
    fingerprints = read_model_folder(folder, chat_template=state.chat_template).fingerprints
    for name in ("tokenizer", "template"):
        if fingerprints[name] != state.fingerprints[name]:
            raise ModelError(
                f"{folder}: its {name} is {fingerprints[name][:12]}, {checkpoint} was trained with"
                f" {state.fingerprints[name][:12]}; name the folder of the run's model: --model DIR"
            )
    return folder


def _with_weights(source: Path, base: Base) -> Path:
    """The folder whose weights show names and files: that of the base, where the model's folder has no weights."""
    return Path(base.path) if base.path and not any(source.glob("*.safetensors")) else source


def _bytes(model: TrainModel, kind: torch.dtype, names: Collection[str] | None) -> int:
    """Bytes in a type of these parameters of a model; of all parameters without names."""
    return sum(
        parameter.numel() * kind.itemsize
        for name, parameter in model.named_parameters()
        if names is None or name in names
    )


@contextmanager
def _written(out: Path, needed: int) -> Iterator[Path]:
    """A folder to write that becomes `out` at the end of the block; TrainError if it cannot be written.

    needed: bytes of its tensors.
    """
    try:
        with new_folder(out, TrainError) as part:
            yield part
    except (OSError, SafetensorError) as error:
        room = no_room(str(error), next(path for path in out.parents if path.exists()), needed)
        raise TrainError(f"{out} could not be written: {room or error}; nothing of it is left") from error


def _refuse_unlike(out: Path, names: Sequence[str]) -> None:
    if names:
        raise TrainError(f"{out}: {names[0]} was read back as something else ({len(names)} tensors in all)")


def _base_name(base: Base, source: Path, given: str) -> str:
    """The base that an adapter names: a hub id where the run was given a hub id. TrainError for random numbers."""
    if not base.path:
        raise TrainError(
            f"the adapter belongs on {base.digest or 'weights that checkpoints hold'}, which nobody else has;"
            " export --merged"
        )
    if Path(base.path) == source.resolve() and not Path(given).expanduser().is_dir():
        return given
    return base.path
