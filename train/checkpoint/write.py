"""Writing checkpoints while training goes on.

A save copies the tensors into main memory and returns; a thread writes the copy, hashes it, marks it complete, renames
it and deletes old checkpoints. The thread has a separate process group: collectives of two threads on one group would
mix. The thread is a daemon, since a peer that died must not keep this process from ending, and touches no GPU.
torch's async_save does the first half of this; this thread also does the work that follows the tensors.
"""

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_saver import save

from lmms.configs.errors import TrainError
from lmms.configs.files import PART_SUFFIX, sync_folder, write_whole
from lmms.configs.room import no_room
from lmms.train.checkpoint.dcp import Writer
from lmms.train.checkpoint.files import COMPLETE_NAME, STATE_NAME, describe_files, fault_of
from lmms.train.checkpoint.keep import BEST_NAME, Keep, delete_old, write_best
from lmms.train.checkpoint.read import checkpoint_name, files_of, list_checkpoints
from lmms.train.checkpoint.state import Best, TrainerState, state_to_dict
from lmms.train.parallel.world import World, of_all_ranks


class Saver:
    """Writes checkpoints, one at a time. All ranks call save together; `saving` makes a Saver."""

    def __init__(
        self, output: Path, world: World, keep: Keep, step: int, asynchronous: bool, report: Callable[[str], None]
    ) -> None:
        """step: the run starts after it; a checkpoint of that step is there already, or would hold nothing."""
        self._place = _Place(output, world, dist.new_group(backend="gloo"))
        self._keep, self._asynchronous, self._report = keep, asynchronous, report
        self._saved_step = step
        # On a GPU, pinned buffers stay from one save to the next: torch 2.11's DefaultStager works only once.
        self._stager = BlockingAsyncStager(cache_staged_state_dict=world.device.type == "cuda")
        self._writing: _Writing | None = None

    def save(self, state: TrainerState, tensors: Mapping[str, torch.Tensor]) -> None:
        """Save the values of these tensors, which may change as soon as this returns. Waits for the save before.

        Nothing is done for the step of the last save. TrainError: a failure of the save before, or of this save where
        saves are not asynchronous.
        """
        self.wait()
        if state.step == self._saved_step:
            return
        self._saved_step = state.step
        staged = self._stager.stage(dict(tensors))
        self._writing = _Writing(lambda: _write(self._place, self._keep, state, staged))
        self._writing.start()
        if not self._asynchronous:
            self.wait()

    def check(self) -> None:
        """Report the save if it has ended, without waiting. TrainError if it failed."""
        if self._writing is not None and self._writing.ended.is_set():
            self.wait()

    def wait(self) -> None:
        """Wait for the end of the save, and report it. TrainError if it failed."""
        if self._writing is None:
            return
        self._writing.ended.wait()
        outcome, self._writing = self._writing.outcome, None
        if outcome is None:
            raise TrainError("the thread that writes checkpoints died; its error was printed where it happened")
        if isinstance(outcome, TrainError):
            raise outcome
        for line in outcome:
            self._report(line)

    def close(self, grace_s: float) -> None:
        """Wait at most so many seconds for a save that is still being written, whether it succeeds or not."""
        if self._writing is not None:
            if not self._writing.ended.is_set():
                self._report(f"waiting up to {grace_s:g} s for the checkpoint that is being written")
                self._writing.ended.wait(grace_s)
            if isinstance(self._writing.outcome, list):
                for line in self._writing.outcome:
                    self._report(line)


@contextmanager
def saving(
    output: Path,
    world: World,
    keep: Keep,
    step: int,
    *,
    asynchronous: bool,
    grace_s: float,
    report: Callable[[str], None],
) -> Iterator[Saver]:
    """A Saver for a run that starts at `step`; all ranks together. The end of the block waits for the last save.

    report gets a line for each checkpoint. Where the block raises, the wait is at most grace_s.
    """
    saver = Saver(output, world, keep, step, asynchronous, report)
    try:
        yield saver
        saver.wait()
    finally:
        saver.close(grace_s)


@dataclass(frozen=True, slots=True)
class _Place:
    """The output folder of a rank, and the ranks that write with it."""

    output: Path
    world: World
    group: dist.ProcessGroup

    def on_main(self, act: Callable[[], None]) -> None:
        """Call act on rank 0 while the others wait; an error there is raised on every rank."""
        of_all_ranks(act if self.world.is_main else lambda: None, self.group)


class _Writing(threading.Thread):
    """One save."""

    def __init__(self, write: Callable[[], list[str]]) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self._write = write
        self.outcome: list[str] | TrainError | None = None
        """What a person should know of the checkpoint, or the error; None until the end."""
        self.ended = threading.Event()
        """Waited for instead of the thread: Python takes a thread for dead when Ctrl-C interrupted its join."""

    def run(self) -> None:
        try:
            self.outcome = self._write()
        except TrainError as error:
            self.outcome = error
        finally:
            self.ended.set()


def _write(place: _Place, keep: Keep, state: TrainerState, staged: dict[str, torch.Tensor]) -> list[str]:
    """Write a checkpoint of the staged tensors, on all ranks together; returns what a person should know of it."""
    final = place.output / checkpoint_name(state.step)
    part = final.with_name(final.name + PART_SUFFIX)
    rank, size = place.world.rank, place.world.size
    try:
        place.on_main(lambda: _begin(part, final, state))
        save(staged, storage_writer=Writer(part), process_group=place.group)
        # One list for all ranks: a rank's view of a shared folder may be older than the files of other ranks.
        names = of_all_ranks(lambda: files_of(part) if place.world.is_main else [], place.group)[0]
        shares = of_all_ranks(lambda: describe_files(part, names[rank::size]), place.group)
        files = {name: entry for share in shares for name, entry in share.items()}
        place.on_main(lambda: _finish(part, final, files))
    except (CheckpointException, RuntimeError, TrainError) as error:
        if place.world.is_main:
            # The rest of it would fill the disk, which the log and the run that goes on need.
            shutil.rmtree(part, ignore_errors=True)
        causes = _causes(error)
        if room := no_room(causes, place.output, sum(tensor.nbytes for tensor in staged.values())):
            causes = f"{room}; {_kept(place.output)}"
        raise TrainError(f"{final}: the checkpoint could not be written: {causes}") from error
    # What follows cannot take the checkpoint back.
    place.on_main(lambda: _name_best(final, state.best))
    lines = [f"saved {final}"]
    if place.world.is_main:
        lines += delete_old(place.output, keep, None if state.best is None else state.best.step)
    return lines


def _kept(output: Path) -> str:
    complete, _ = list_checkpoints(output)
    if not complete:
        return "no checkpoint is kept, so the same command starts at step 0"
    return f"{complete[-1].name} is kept, and the same command goes on from there"


def _begin(part: Path, final: Path, state: TrainerState) -> None:
    if fault_of(final) is None:
        raise TrainError(f"{final} is a complete checkpoint already, of another run")
    for leftover in final.parent.glob(f"step-*{PART_SUFFIX}"):
        # A rest that cannot be deleted was reported when that was first tried; only this step's name has to be free.
        shutil.rmtree(leftover, ignore_errors=leftover != part)
    if final.exists():
        shutil.rmtree(final)
    part.mkdir(parents=True)
    write_whole(part / STATE_NAME, json.dumps(state_to_dict(state), indent=1))


def _finish(part: Path, final: Path, files: dict[str, Any]) -> None:
    write_whole(part / COMPLETE_NAME, json.dumps(files, indent=1))
    sync_folder(part)
    part.rename(final)
    sync_folder(final.parent)


def _name_best(final: Path, best: Best | None) -> None:
    if best is None:
        return
    try:
        write_best(final.parent, best)
    except OSError as error:
        raise TrainError(
            f"{final} is saved, but {BEST_NAME}, which names the best checkpoint, cannot be written"
            f" ({error.strerror}); make room, and the same command goes on from there"
        ) from error


def _causes(error: BaseException) -> str:
    """The errors of all ranks, without the stacks that a CheckpointException prints."""
    causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    return "; ".join(str(cause).partition("\n")[0] for cause in causes)
