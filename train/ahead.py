"""Batches on their way to the device while the one before them is computed."""

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from lmms.train.batch import Batch, map_tensors

T = TypeVar("T")
U = TypeVar("U")


def ahead(batches: Iterable[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """The same batches on the device, in order. On CUDA each is copied one ahead of its use, on a stream of its own."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            return batch.pin_memory().to(device), stream.record_event()

    for batch, arrived in one_ahead(batches, start):
        user = torch.cuda.current_stream(device)
        user.wait_event(arrived)
        yield map_tensors(batch, partial(_keep_for, user))


def one_ahead(items: Iterable[T], start: Callable[[T], U]) -> Iterator[U]:
    """start(item) of each item, in order, each started before the one before it is handed out."""
    started: list[U] = []
    for item in items:
        started.append(start(item))
        if len(started) == 2:
            yield started.pop(0)
    yield from started


def _keep_for(user: torch.cuda.Stream, tensor: Tensor) -> Tensor:
    """Memory of one stream that another reads: it is not given away before that has done so."""
    tensor.record_stream(user)
    return tensor
