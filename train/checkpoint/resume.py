"""Which run may go on with an output folder, from which checkpoint, and which changes a person should know."""

import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from lmms.configs.errors import TrainError
from lmms.configs.files import PART_SUFFIX
from lmms.configs.nested import flat
from lmms.configs.room import size_text
from lmms.configs.stores.store import setting_text
from lmms.train.checkpoint.files import COMPLETE_NAME, fault_of, named_checkpoint, refuse_damaged
from lmms.train.checkpoint.read import (
    checkpoint_name,
    damaged_of_all,
    list_checkpoints,
    read_state,
    step_folders,
)
from lmms.train.checkpoint.state import TrainerState
from lmms.train.parallel.world import World
from lmms.train.watch.metrics import metrics_lines

T = TypeVar("T")

BROKEN_SUFFIX = ".broken"
"""Suffix of a checkpoint that was set aside."""


_LEFTOVERS = tuple(f"{folder}*{PART_SUFFIX}" for folder in ("", "profile/", "oom/"))
"""Patterns of what is still being written in an output folder: see configs.files.beside."""


@contextmanager
def output_locked(output: Path) -> Iterator[None]:
    """A context with the output folder, made if needed, for this process alone. TrainError while another run has it.

    The lock ends with the process: a kill leaves no lock behind. A run that fails before it writes anything leaves no
    new folder behind.
    """
    made = [path for path in (output, *output.parents) if not path.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output, os.O_RDONLY)
    except OSError as error:
        raise TrainError(f"output {output} cannot be opened as a folder: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainError(f"another run is writing {output}; wait for it or choose another output") from None
        yield
    except BaseException:
        # A folder that is not empty stays: rmdir refuses it.
        with suppress(OSError):
            for path in made:
                path.rmdir()
        raise
    finally:
        os.close(descriptor)


def clear_leftovers(output: Path, say: Callable[[str], None]) -> None:
    """Delete what an earlier run left half-written in its output folder, before this run writes anything.

    A killed run, or a run on a full disk, leaves files and folders, which may fill the disk. What cannot be deleted is
    an alarm: a run writes beside it. Only for the run that has the lock.
    """
    for leftover in sorted({path for pattern in _LEFTOVERS for path in output.glob(pattern)}):
        files = [path for path in (leftover, *leftover.rglob("*")) if path.is_file()]
        size = size_text(sum(path.stat().st_size for path in files))
        try:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        except OSError as error:
            say(f"ALARM: {leftover}, left half-written by an earlier run ({size}), cannot be deleted: {error.strerror}")
        else:
            say(f"deleted {leftover}, which an earlier run left half-written ({size})")


def resume_from(setting: str, output: Path, world: World, say: Callable[[str], None]) -> Path | None:
    """The checkpoint that the setting `resume` means. The ranks read it together, and check the hashes of its files.

    With auto, a broken newest checkpoint is set aside (step-00000010.broken), `say` tells so, and the checkpoint before
    it is taken. TrainError where none is left, for a named checkpoint that is broken, and where going on would
    overwrite later checkpoints.
    """
    checkpoint = world.once(lambda: _candidate(setting, output, say))
    damaged = damaged_of_all(checkpoint) if checkpoint else []
    if not checkpoint or not damaged:
        return checkpoint
    if setting != "auto":
        refuse_damaged(checkpoint, damaged)
    fault = f"the hash of {damaged[0]} is not that of {COMPLETE_NAME}"
    world.once(lambda: _set_aside(checkpoint, fault, say))
    return resume_from(setting, output, world, say)


def would_resume(setting: str, output: Path) -> Path | None:
    """The checkpoint that resume_from would choose, by the sizes of its files; nothing is renamed or hashed."""
    if setting != "auto":
        return _candidate(setting, output, lambda line: None)
    complete, _ = list_checkpoints(output)
    if complete:
        return complete[-1]
    aside = output.glob(f"step-*{BROKEN_SUFFIX}*")
    _refuse_to_start_over(output, sorted([*step_folders(output).values(), *aside]))
    return None


def _candidate(setting: str, output: Path, say: Callable[[str], None]) -> Path | None:
    """The checkpoint that the setting means, by the sizes of its files."""
    folders = step_folders(output)
    if setting == "auto":
        for path in reversed(folders.values()):
            if (fault := fault_of(path)) is None:
                return path
            _set_aside(path, fault, say)
        _refuse_to_start_over(output, sorted(output.glob(f"step-*{BROKEN_SUFFIX}*")))
        return None
    chosen, step = None, 0
    if setting != "never":
        chosen = named_checkpoint(setting)
        step = read_state(chosen).step
    later = [path for other, path in folders.items() if other > step or (other == step and not _same(path, chosen))]
    in_the_way = [path for path in later if fault_of(path) is None]
    if in_the_way:
        raise TrainError(
            f"resume is {setting!r}, but {output} holds later checkpoints, up to {in_the_way[-1].name}; delete them,"
            " choose another output, or use resume: auto"
        )
    return chosen


def _refuse_to_start_over(output: Path, broken: Sequence[Path]) -> None:
    if broken:
        raise TrainError(
            f"{output} holds none but broken checkpoints, such as {broken[-1].name}: the run would start anew over"
            " its own log; delete them to want that, or choose another output"
        )


def _same(path: Path, chosen: Path | None) -> bool:
    return chosen is not None and path.resolve() == chosen.resolve()


def _set_aside(checkpoint: Path, fault: str, say: Callable[[str], None]) -> None:
    aside = checkpoint.with_name(checkpoint.name + BROKEN_SUFFIX)
    for number in range(2, 1000):
        if not aside.exists():
            break
        aside = checkpoint.with_name(f"{checkpoint.name}{BROKEN_SUFFIX}{number}")
    try:
        checkpoint.rename(aside)
    except OSError as error:
        raise TrainError(f"{checkpoint} is broken ({fault}) and cannot be renamed: {error}; move it away") from error
    say(f"{checkpoint} is broken ({fault}): it was set aside as {aside.name}; the one before it is used, if any")


def is_saved(output: Path) -> bool:
    """Whether the newest complete checkpoint of a run that has ended holds the last step of its log."""
    lines = metrics_lines(output)
    return bool(lines) and fault_of(output / checkpoint_name(lines[-1]["step"])) is None


def resumed_state(
    fresh: TrainerState, stored: TrainerState, checkpoint: Path, allowed: Collection[str]
) -> TrainerState:
    """This run's state at a checkpoint, with the phases that are stored there.

    TrainError unless the run goes on as it would have: the same packs in the same order in steps of the same size, for
    the same parameters. `allowed` (resume_changes) names what may differ: global_packs, mixture.
    """
    for name, stored_value, expected, advice in _differences(fresh, stored, allowed):
        raise TrainError(
            f"{checkpoint} was trained with {name} {setting_text(stored_value)}, this run has {setting_text(expected)}:"
            f" {advice}, or start in another output folder"
        )
    return replace(
        fresh,
        step=stored.step,
        position=stored.position,
        phases=stored.phases,
        zero_steps=stored.zero_steps,
        skipped=stored.skipped,
        best=stored.best,
    )


def _differences(
    fresh: TrainerState, stored: TrainerState, allowed: Collection[str]
) -> Iterator[tuple[str, object, object, str]]:
    """(what, in the checkpoint, in this run, what to do) of each difference that is not allowed."""
    same_packs = "other packs would come next; go on with the same"
    rows: list[tuple[str, object, object, str]] = [
        ("seed", stored.seed, fresh.seed, f"{same_packs} seed"),
        ("order", stored.order, fresh.order, f"{same_packs} version of lmms"),
        ("data.group_packs", stored.group_packs, fresh.group_packs, f"{same_packs} data.group_packs"),
    ]
    if "mixture" not in allowed:
        else_allow = ", or set resume_changes: [mixture] for the new sets from here on"
        rows += [
            ("shards", stored.shards, fresh.shards, f"{same_packs} shards{else_allow}"),
            ("mixture", _turns(stored), _turns(fresh), f"{same_packs} mixture{else_allow}"),
        ]
    if "global_packs" not in allowed:
        advice = "its steps had another size; go on with the same, or set resume_changes: [global_packs]"
        rows += [("data.global_packs", stored.global_packs, fresh.global_packs, advice)]
    # Other sets may be packed in another way.
    of_sets = {"packing", "vision"} if stored.shards != fresh.shards else set[str]()
    for name in sorted((stored.fingerprints.keys() | fresh.fingerprints.keys()) - of_sets):
        before, now = stored.fingerprints.get(name), fresh.fingerprints.get(name)
        rows += [(name, before, now, f"the shards are of another {name}; go on with the same shards and model")]
    averages = "the optimizer's averages are those of other parameters; go on with the same train"
    of_name = (
        "its averages are another optimizer's, its weights alone can be taken with model.init_from; go on with the same"
        " optim.name"
    )
    dealt = "its packs would be dealt out otherwise; go on with the same model and version of lmms"
    rows += [
        ("train", stored.config.get("train"), fresh.config["train"], averages),
        ("costs", stored.costs, fresh.costs, dealt),
        ("optim.name", *((state.config.get("optim") or {}).get("name", "adamw") for state in (stored, fresh)), of_name),
    ]
    lora_before, lora_now = (_settings({"lora": state.config.get("lora") or {}}) for state in (stored, fresh))
    rows += [
        (key, lora_before.get(key), lora_now[key], "its LoRA is another; go on with the same lora section")
        for key in lora_now
        if "lora" in fresh.config["train"].values()
    ]
    return (row for row in rows if row[1] != row[2])


def _turns(state: TrainerState) -> list[int]:
    """The number of turns of each set, in the current phase of the run."""
    return [share.turns for share in state.phases[-1].sets]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """A line for each setting that differs between a checkpoint's run and this run."""
    old, new = _settings(before), _settings(now)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            was, now_is = (setting_text(settings.get(key)) for settings in (old, new))
            yield f"changed since the checkpoint: {key} was {was}, is {now_is}"


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value, with tuples as lists, as JSON has them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in flat(config, ".").items()}
