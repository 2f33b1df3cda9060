"""Batches for the trainer, made ahead of it by loader processes.

What a batch holds depends on the pack numbers alone, never on the worker that made it: workers keep no state, and their
number may change at any resume.
"""

import multiprocessing
import os
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.utils.data import DataLoader

from lmms.configs.errors import LmmsError, TrainError
from lmms.configs.manifest import Dataset
from lmms.train.batch import Batch, Recipe, make_batch
from lmms.train.stream import PackReader, Sidecar

T = TypeVar("T")


def batches(
    dataset: Dataset, sidecar: Sidecar, recipe: Recipe, plan: Iterable[Sequence[int]], workers: int
) -> Iterator[Batch]:
    """The batch of each entry of `plan` (pack numbers), in its order; `plan` may be endless.

    workers: loader processes, 0 makes the batches in this one. An LmmsError in a worker is raised here as it is; a
    worker that dies is a TrainError.
    """
    loader = _BatchLoader(PackReader(dataset, sidecar), recipe)
    try:
        yield from map(loader.make, plan) if workers == 0 else _in_workers(loader, plan, workers)
    finally:
        loader.reader.close()


@dataclass(frozen=True, slots=True)
class _BatchLoader:
    """pack numbers -> batch. The map-style data set that torch's loader sends to its workers."""

    reader: PackReader
    recipe: Recipe

    def make(self, packs: Sequence[int]) -> Batch:
        return make_batch([self.reader.read(pack) for pack in packs], self.recipe, packs)

    def __getitem__(self, packs: Sequence[int]) -> Batch | LmmsError:
        """An error is handed over as a value: raised in a worker, it would arrive as a text of that worker's stack."""
        try:
            return self.make(packs)
        except LmmsError as error:
            error.add_note(traceback.format_exc())
            return error


def _in_workers(loader: _BatchLoader, plan: Iterable[Sequence[int]], workers: int) -> Iterator[Batch]:
    """Fork server: a worker forked from the trainer itself would inherit its threads' locks and its CUDA state."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload(["lmms.train.loader"])
    stream: DataLoader[Batch | LmmsError] = DataLoader(
        loader,  # type: ignore[arg-type]
        sampler=plan,
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_end_with_trainer,
        multiprocessing_context=context,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own, so that the run's random state is left alone
    )
    try:
        for batch in stream:
            if isinstance(batch, LmmsError):
                raise batch
            yield batch
    except (RuntimeError, EOFError, OSError) as error:
        if str(error).startswith("Caught "):  # code of ours failed in the worker, which is alive
            raise
        what = str(error) or type(error).__name__
        advice = "often memory or /dev/shm ran out: lower data.workers or data.micro_packs"
        raise TrainError(f"a loader process died ({what}); {advice}") from error


def _unchanged(batch: T) -> T:
    return batch


def _end_with_trainer(_worker: int) -> None:
    """End this worker when the trainer is killed. torch watches the parent, which is the fork server: it lives on."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None

    def watch() -> None:
        trainer.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
