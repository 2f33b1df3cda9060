"""Checkpoints: a folder that is complete or is not used.

    output/step-00000010/   *.distcp, .metadata   torch.distributed.checkpoint: weights and averages, by name
                            trainer.json          TrainerState
                            complete.json         written last: every other file with its size and hash

Saver writes a checkpoint as step-00000010.part, and renames it. Any number of ranks reads what any number wrote.
"""

import json
import pickle
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from lmms.configs.errors import TrainError
from lmms.configs.files import PART_SUFFIX
from lmms.train.checkpoint.files import (
    METADATA_NAME,
    STATE_NAME,
    damaged_files,
    fault_of,
    read_complete,
    refuse_damaged,
)
from lmms.train.checkpoint.state import TrainerState, state_from_dict
from lmms.train.parallel.world import of_all_ranks

T = TypeVar("T")

_NAME = re.compile(r"step-(\d{8,})")
_UNREADABLE = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError),
    *(AttributeError, ImportError, LookupError),
)
"""Errors of a pickle that is damaged, or that another version of torch wrote."""


def checkpoint_name(step: int) -> str:
    """The name of a step's folder in the output folder of its run."""
    return f"step-{step:08d}"


def step_folders(output: Path) -> dict[int, Path]:
    """Step -> its folder in an output folder, sorted, complete or not; without folders set aside or unfinished."""
    named = ((_NAME.fullmatch(path.name), path) for path in output.glob("step-*") if path.is_dir())
    return dict(sorted((int(name[1]), path) for name, path in named if name))


def list_checkpoints(output: Path) -> tuple[list[Path], list[Path]]:
    """(complete, not complete) checkpoints of an output folder, the oldest first."""
    folders = list(step_folders(output).values())
    complete = [path for path in folders if fault_of(path) is None]
    unfinished = sorted(output.glob(f"step-*{PART_SUFFIX}"))
    return complete, [path for path in folders if path not in complete] + unfinished


def tensors_of(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, checkpointed: Collection[str] | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, by name, which share memory with the model; tied weights once. Loading fills them.

    checkpointed: names of the parameters that the checkpoint holds; None: all.
    """
    parameters = [name for name, _ in model.named_parameters() if checkpointed is None or name in checkpointed]
    names = {*parameters, *(name for name, _ in model.named_buffers())}
    tensors = {f"model.{name}": value for name, value in model.state_dict().items() if name in names}
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def read_state(checkpoint: Path) -> TrainerState:
    """The state of the run in a complete checkpoint."""
    refuse_damaged(checkpoint, damaged_files(checkpoint, [STATE_NAME]))
    try:
        return state_from_dict(json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8")))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise TrainError(
            f"{checkpoint / STATE_NAME} is not of this version ({error}); use another checkpoint"
        ) from error


def model_shapes(checkpoint: Path) -> dict[str, list[int]]:
    """The parameters that a complete checkpoint holds: name in TrainModel -> shape."""
    return {
        name.removeprefix("model."): list(entry.size)
        for name, entry in _read_metadata(checkpoint).state_dict_metadata.items()
        if name.startswith("model.") and isinstance(entry, TensorStorageMetadata)
    }


def files_of(checkpoint: Path) -> list[str]:
    """The files of a checkpoint besides complete.json: metadata names the files of tensors, visible here or not."""
    tensors = _read_metadata(checkpoint).storage_data or {}
    return sorted({METADATA_NAME, STATE_NAME, *(place.relative_path for place in tensors.values())})


def damaged_of_all(checkpoint: Path) -> list[str]:
    """The files of a complete checkpoint whose hash is not that of complete.json. The ranks share the reading."""

    def damaged_of_share() -> list[str]:
        return damaged_files(checkpoint, sorted(read_complete(checkpoint))[dist.get_rank() :: dist.get_world_size()])

    return sorted(name for share in of_all_ranks(damaged_of_share) for name in share)


def load_checkpoint(
    checkpoint: Path, tensors: Mapping[str, torch.Tensor], *, alone: bool = False, verified: bool = False
) -> None:
    """Fill these tensors from a checkpoint; all ranks together, or one process `alone`.

    TrainError names a file whose hash is not that of complete.json (unless the hashes were `verified` before), or the
    first tensors that the checkpoint does not have, has in another shape, or has in excess in a kind (`model.*`).
    """
    if not verified:
        damaged = damaged_files(checkpoint, sorted(read_complete(checkpoint))) if alone else damaged_of_all(checkpoint)
        refuse_damaged(checkpoint, damaged)
    _refuse_misfits(checkpoint, tensors)
    with warnings.catch_warnings():
        # The caller knows that this process is alone.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            load(dict(tensors), checkpoint_id=checkpoint, no_dist=alone)
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            # Ctrl-C is not a failure: torch wraps every exception of every rank.
            if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
                raise KeyboardInterrupt from error
            names = ", ".join(sorted({type(cause).__name__ for cause in causes}))
            raise TrainError(f"{checkpoint} is damaged: its tensors cannot be read ({names}); delete it") from error


def _refuse_misfits(checkpoint: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    stored = _read_metadata(checkpoint).state_dict_metadata
    kinds = {name.partition(".")[0] for name in tensors}
    unexpected = sorted(name for name in stored.keys() - tensors.keys() if name.partition(".")[0] in kinds)
    faults = [f"{name} is unexpected" for name in unexpected]
    for name, tensor in tensors.items():
        size = getattr(stored.get(name), "size", None)
        if size != tensor.shape:
            fault = "is missing" if size is None else f"has shape {list(size)}"
            faults.append(f"{name} {fault}, expected {list(tensor.shape)}")
    if faults:
        raise TrainError(
            f"{checkpoint} does not fit this run: {'; '.join(faults[:3])} ({len(faults)} tensors in all);"
            " model, train and lora must be those of the run that wrote it"
        )


def _read_metadata(checkpoint: Path) -> Metadata:
    try:
        return FileSystemReader(checkpoint).read_metadata()
    except _UNREADABLE as error:
        raise TrainError(
            f"{checkpoint / METADATA_NAME} cannot be read by this version of torch ({type(error).__name__}: {error});"
            " use another checkpoint"
        ) from error
