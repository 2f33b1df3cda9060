"""Activations that go out of a model, from main memory to main memory: a CPU has no other."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lmms.train.model.build import blocks
from lmms.train.model.forward import TrainModel
from lmms.train.model.offload import offload_blocks

PLENTY = 10**8


def room_of(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


class Copies:
    """Copies as a stream of a GPU makes them: not before somebody waits for them. What they were, in order."""

    def __init__(self, room: Tensor) -> None:
        self.room = room.untyped_storage()._cdata
        self.out: list[int] = []
        self.back: list[int] = []
        self.sources: set[int] = set()
        """Addresses of what went out."""
        self.events: list[str] = []

    def __call__(self, target: Tensor, source: Tensor) -> Callable[[], None]:
        goes_out = target.untyped_storage()._cdata == self.room
        (self.out if goes_out else self.back).append(len(target))
        self.events.append("out" if goes_out else "back")
        if goes_out:
            self.sources.add(source.data_ptr())
        else:
            target.fill_(255)
        return partial(target.copy_, source)


def offloaded(model: TrainModel, size: int = PLENTY, least: int = 1) -> tuple[Copies, Callable[[], int]]:
    room = room_of(size)
    copies = Copies(room)
    return copies, offload_blocks(model, blocks(model), room, copies, least)
