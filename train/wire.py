"""Values between a loader process and the trainer, over a socket.

The bytes of tensors go as they are, from the tensor into the one that is trained on: through shared memory they would
take names that a killed run leaves behind, and a container often has 64 MB of it.
"""

import pickle
import socket
from typing import Any

import torch
from torch import Tensor

from lmms.train.batch import map_tensors


def send(line: socket.socket, value: Any) -> None:
    """Send any value; of a batch, the bytes of its tensors follow as they are."""
    tensors: list[Tensor] = []

    def without_data(tensor: Tensor) -> Tensor:
        tensors.append(tensor.contiguous())
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    head = pickle.dumps(map_tensors(value, without_data))
    line.sendall(len(head).to_bytes(8, "little") + head)
    for tensor in tensors:
        line.sendall(_bytes(tensor))


def receive(line: socket.socket, pin: bool = False) -> Any:
    """What send sent, its tensors in pinned memory if asked for. EOFError after the last."""

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
        # numpy makes empty arrays of stride 0, as which torch views no bytes.
        return memoryview(b"")
    return tensor.view(-1).view(torch.uint8).numpy().data
