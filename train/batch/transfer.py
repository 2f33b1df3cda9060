"""Batches on their way to the device while the batch before is computed."""

import pickle
import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from lmms.train.batch.batch import Batch, map_tensors

T = TypeVar("T")
U = TypeVar("U")


def ahead(batches: Iterable[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """The same batches on the device, in order. On CUDA a batch is copied while the batch before is in use."""
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
    """start(item) of each item, in order; each item is started before the result before it is handed out."""
    started: list[U] = []
    for item in items:
        started.append(start(item))
        if len(started) == 2:
            yield started.pop(0)
    yield from started


def _keep_for(user: torch.cuda.Stream, tensor: Tensor) -> Tensor:
    """The tensor, marked so that its memory is not given away before the stream `user` has read the tensor."""
    tensor.record_stream(user)
    return tensor


def send(line: socket.socket, value: Any) -> None:
    """Send any value; the bytes of a batch's tensors follow as they are."""
    tensors: list[Tensor] = []

    def without_data(tensor: Tensor) -> Tensor:
        tensors.append(tensor.contiguous())
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    head = pickle.dumps(map_tensors(value, without_data))
    line.sendall(len(head).to_bytes(8, "little") + head)
    for tensor in tensors:
        line.sendall(_bytes(tensor))


def receive(line: socket.socket, pin: bool = False) -> Any:
    """The next value that send sent, with pin its tensors in pinned memory. EOFError after the last value."""

    def with_data(empty: Tensor) -> Tensor:
        tensor = torch.empty(empty.shape, dtype=empty.dtype, pin_memory=pin)
        _fill(line, _bytes(tensor))
        return tensor

    size = bytearray(8)
    _fill(line, memoryview(size))
    head = bytearray(int.from_bytes(size, "little"))
    _fill(line, memoryview(head))
    return map_tensors(pickle.loads(head), with_data)


def _fill(line: socket.socket, view: memoryview) -> None:
    while view:
        count = line.recv_into(view)
        if count == 0:
            raise EOFError
        view = view[count:]


def _bytes(tensor: Tensor) -> memoryview:
    if tensor.numel() == 0:
        # numpy makes empty arrays of stride 0, which torch cannot view as bytes.
        return memoryview(b"")
    return tensor.view(-1).view(torch.uint8).numpy().data
