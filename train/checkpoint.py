"""Checkpoints: a folder that is complete or is not used.

    output/step-00000010/   *.distcp, .metadata   torch.distributed.checkpoint: weights and averages, by name
                            trainer.json          TrainerState
                            complete.json         written last: every other file with its size and hash

They are written as step-00000010.part and renamed. Any number of ranks reads what any number wrote. Random numbers need
no state: every step seeds its own from (seed, step, rank).
"""

import json
import pickle
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from lmms.configs.errors import TrainError
from lmms.configs.train import Part
from lmms.train.complete import (
    COMPLETE_NAME,
    METADATA_NAME,
    STATE_NAME,
    damaged_files,
    describe_files,
    fault_of,
    read_complete,
    refuse_damaged,
    write_synced,
)
from lmms.train.parallel import World

T = TypeVar("T")

_UNREADABLE = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError),
    *(AttributeError, ImportError, LookupError),
)
"""What a pickle of other bytes, or of another torch, raises."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerState:
    """All of a run that is not a tensor."""

    step: int
    """Optimizer steps taken."""
    position: int
    """Packs trained; with seed, order and shards it says which come next."""
    seed: int
    order: str
    """order.ORDER_VERSION."""
    shards: str
    """xxh3 of index.json, which names the hash of every shard."""
    model: str
    """The model folder, as an absolute path."""
    zero_steps: dict[Part, int]
    """Steps in a row without gradient, of each trained part."""
    config: dict[str, Any]


def checkpoint_name(step: int) -> str:
    """The folder of a step, in the output folder of its run."""
    return f"step-{step:08d}"


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, torch.Tensor]:
    """What a checkpoint holds, by name, sharing memory with the model; tied weights once. Loading fills it in place."""
    names = dict(model.named_parameters()) | dict(model.named_buffers())
    tensors = {f"model.{name}": value for name, value in model.state_dict().items() if name in names}
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def save_checkpoint(
    output: Path, state: TrainerState, tensors: Mapping[str, torch.Tensor], world: World, limit: int | None
) -> Path:
    """Write a checkpoint, on all ranks together, then delete the oldest beyond `limit`. Returns its folder."""
    final = output / checkpoint_name(state.step)
    part = final.with_name(final.name + ".part")
    try:
        if world.is_main:
            for unfinished in (*output.glob("step-*.part"), *output.glob(final.name)):
                shutil.rmtree(unfinished)
            part.mkdir(parents=True)
        world.barrier()
        save(dict(tensors), checkpoint_id=part)
        if world.is_main:
            write_synced(part / STATE_NAME, asdict(state))
        world.barrier()
        names = sorted(path.name for path in part.iterdir())
        shares = _of_all_ranks(describe_files(part, names[world.rank :: world.size]))
        if world.is_main:
            write_synced(part / COMPLETE_NAME, {name: entry for share in shares for name, entry in share.items()})
            part.rename(final)
            for oldest in list_checkpoints(output)[0][: -limit if limit else 0]:
                # Renamed first: a deletion that is cut off must not leave what looks like a checkpoint.
                shutil.rmtree(oldest.rename(oldest.with_name(oldest.name + ".part")))
    except (CheckpointException, OSError) as error:
        _raise_interrupt(error)
        raise TrainError(f"{part}: the checkpoint could not be written: {_causes(error)}") from error
    world.barrier()
    return final


def list_checkpoints(output: Path) -> tuple[list[Path], list[Path]]:
    """(complete, not complete) checkpoints of an output folder, the oldest first."""
    found = sorted(path for path in output.glob("step-*") if path.is_dir())
    complete = [path for path in found if fault_of(path) is None]
    return complete, [path for path in found if path not in complete]


def resume_from(setting: str, output: Path) -> Path | None:
    """The checkpoint that the setting `resume` means. TrainError where going on would overwrite what is there."""
    complete, _ = list_checkpoints(output)
    chosen = complete[-1] if setting == "auto" and complete else None
    if setting not in ("auto", "never"):
        chosen = Path(setting).expanduser()
        if (fault := fault_of(chosen)) is not None:
            raise TrainError(f"{chosen} is not a complete checkpoint ({fault}); name another, or use resume: auto")
    step = read_state(chosen).step if chosen else 0
    in_the_way = [path for path in complete if path.name > checkpoint_name(step)]
    if in_the_way:
        raise TrainError(
            f"resume is {setting!r}, but {output} holds later checkpoints, up to {in_the_way[-1].name}; delete them,"
            " choose another output, or use resume: auto"
        )
    return chosen


def read_state(checkpoint: Path) -> TrainerState:
    """What a complete checkpoint says of its run."""
    refuse_damaged(checkpoint, damaged_files(checkpoint, [STATE_NAME]))
    try:
        return TrainerState(**json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise TrainError(
            f"{checkpoint / STATE_NAME} is not of this version ({error}); use another checkpoint"
        ) from error


def load_checkpoint(checkpoint: Path, tensors: Mapping[str, torch.Tensor], *, alone: bool = False) -> None:
    """Fill these tensors from a checkpoint; all ranks together, or one process `alone`.

    TrainError names a file whose hash is not that of complete.json (the ranks share the reading), or the first tensors
    that the checkpoint does not have, has in another shape, or has beyond those of the same kind (`model.*`, ...).
    """
    names = sorted(read_complete(checkpoint))
    if alone:
        refuse_damaged(checkpoint, damaged_files(checkpoint, names))
    else:
        shares = _of_all_ranks(damaged_files(checkpoint, names[dist.get_rank() :: dist.get_world_size()]))
        refuse_damaged(checkpoint, sorted(name for share in shares for name in share))
    stored = _read_metadata(checkpoint).state_dict_metadata
    kinds = {name.partition(".")[0] for name in tensors}
    unexpected = sorted(name for name in stored.keys() - tensors.keys() if name.partition(".")[0] in kinds)
    faults = [f"{name} is unexpected" for name in unexpected]
    for name, tensor in tensors.items():
        size = getattr(stored.get(name), "size", None)
        if size != tensor.shape:
            found = "is missing" if size is None else f"has shape {list(size)}"
            faults.append(f"{name} {found}, expected {list(tensor.shape)}")
    if faults:
        raise TrainError(
            f"{checkpoint} does not fit this run: {'; '.join(faults[:3])} ({len(faults)} tensors in all);"
            " model and freeze must be those of the run that wrote it"
        )
    with warnings.catch_warnings():
        # That it is alone is what the caller said.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            load(dict(tensors), checkpoint_id=checkpoint, no_dist=alone)
        except CheckpointException as error:
            _raise_interrupt(error)
            causes = ", ".join(sorted({type(cause).__name__ for cause, _ in error.failures.values()}))
            raise TrainError(f"{checkpoint} is damaged: its tensors cannot be read ({causes}); delete it") from error


def _read_metadata(checkpoint: Path) -> Metadata:
    try:
        return FileSystemReader(checkpoint).read_metadata()
    except _UNREADABLE as error:
        raise TrainError(
            f"{checkpoint / METADATA_NAME} cannot be read by this version of torch ({type(error).__name__}: {error});"
            " use another checkpoint"
        ) from error


def _of_all_ranks(own: T) -> list[T]:
    everyone: list[T] = [own] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return everyone


def _raise_interrupt(error: CheckpointException | OSError) -> None:
    """Ctrl-C is not a failure: torch wraps whatever was raised, on any rank."""
    if isinstance(error, CheckpointException):
        for cause, _ in error.failures.values():
            if isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from error


def _causes(error: CheckpointException | OSError) -> str:
    """What failed, on whichever rank, without the stacks that a CheckpointException prints."""
    causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    return "; ".join(map(str, causes))
