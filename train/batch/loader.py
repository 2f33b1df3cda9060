"""Batches for the trainer, made ahead of it by loader processes.

What a batch holds depends on the request alone, never on the process that made it: loader processes keep no state, and
their number may change at any resume.
"""

import faulthandler
import os
import select
import signal
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

import torch

from lmms.configs.errors import LmmsError, TrainError
from lmms.train.batch.batch import Batch, make_batch
from lmms.train.batch.padding import pad_batch
from lmms.train.batch.processes import fork
from lmms.train.batch.recipe import Recipe
from lmms.train.batch.transfer import receive, send
from lmms.train.data.shards import PackReader, Request

_DEPTH = 2
"""Requests that a process has at a time, so that an expensive batch does not delay cheap batches."""

_PATIENCE = 0.9
"""Share of stall_s after which a loader process is given up: before the watchdog ends this rank, or another rank that
waits for this rank."""

_END_S = 5.0
"""Seconds in which a loader process that is at work has to end by itself."""


@dataclass(frozen=True, slots=True)
class Loading:
    """How packs are read."""

    micro_packs: int
    """Packs a pass."""
    workers: int
    """Loader processes; with 0, batches are made in the process that uses them."""
    stall_s: float
    """Seconds without a batch after which a loader process is given up."""


def batches(
    reader: PackReader, recipe: Recipe, requests: Iterable[Request], workers: int, stall_s: float
) -> Generator[Batch, None, None]:
    """The batch of each request, in their order; there may be endlessly many.

    workers: loader processes; 0 makes the batches in this process. An LmmsError in a worker is raised here as it is; a
    worker that dies, or makes nothing for almost stall_s seconds, is a TrainError. Closing the iterator ends workers.
    """
    if workers == 0:
        with closing(reader):
            yield from (_make(reader, recipe, request) for request in requests)
        return
    pending = iter(requests)
    with ExitStack() as exits:
        team = [exits.enter_context(closing(_Worker(reader, recipe, stall_s))) for _ in range(workers)]
        for worker in team:  # hang up on all workers before waiting for any of them
            exits.callback(worker.hang_up)
        turns = deque[_Worker]()
        for worker, request in zip(team * _DEPTH, pending, strict=False):
            worker.ask(request)
            turns.append(worker)
        while turns:
            worker = turns.popleft()
            batch = worker.take()
            for request in islice(pending, 1):
                worker.ask(request)
                turns.append(worker)
            yield batch


class _Worker:
    """A loader process, and a thread that receives a batch while the process makes the next batch."""

    def __init__(self, reader: PackReader, recipe: Recipe, stall_s: float) -> None:
        self._patience = _PATIENCE * stall_s
        self._recipe = recipe
        self._asked = deque[Request]()
        self._made = SimpleQueue[Batch | LmmsError | None]()
        self._fork = fork(self._patience)
        pin = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._thread = threading.Thread(target=_take_over, args=(self._fork.line, self._made, pin), daemon=True)
        self._thread.start()
        self._send((reader, recipe))

    def ask(self, request: Request) -> None:
        self._asked.append(request)
        self._send(request)

    def take(self) -> Batch:
        """The batch of the oldest request whose batch was not taken."""
        names = ", ".join(map(self._recipe.name, self._asked[0].places))
        try:
            made = self._made.get(timeout=self._patience)
        except Empty:
            what = f"a loader process has made nothing of {names} for {self._patience:.0f} s"
            where = self._fork.stack()
            self._fork.kill()
            raise TrainError(f"{what}; it is here:\n{where}") from None
        if made is None:
            advice = "its own message, if any, is above; often memory ran out: lower data.workers or data.micro_packs"
            raise TrainError(f"a loader process died at {names} or soon after; {advice}")
        if isinstance(made, LmmsError):
            raise made
        self._asked.popleft()
        return made

    def hang_up(self) -> None:
        self._fork.hang_up()

    def close(self) -> None:
        self._fork.end(2 * _END_S)
        self._thread.join()

    def _send(self, value: Any) -> None:
        with suppress(ConnectionError):  # take tells that a process has died
            send(self._fork.line, value)


def serve(line: socket.socket, stacks: int) -> None:
    """What a loader process does: answer requests, until the trainer hangs up."""
    faulthandler.register(signal.SIGUSR2, stacks, all_threads=True)
    threading.Thread(target=_end_with_trainer, args=(line,), daemon=True).start()
    with suppress(EOFError, ConnectionError):
        reader, recipe = receive(line)
        with closing(reader):
            while True:
                send(line, _answer(reader, recipe, receive(line)))


def _end_with_trainer(line: socket.socket) -> None:
    """End this process soon after the trainer has hung up, even in the middle of work: a store may take long."""
    hung_up = select.poll()
    hung_up.register(line, 0)
    hung_up.poll()
    time.sleep(_END_S)
    os._exit(1)


def _answer(reader: PackReader, recipe: Recipe, request: Request) -> Batch | LmmsError:
    try:
        return _make(reader, recipe, request)
    except LmmsError as error:
        error.add_note(traceback.format_exc())
        return error


def _make(reader: PackReader, recipe: Recipe, request: Request) -> Batch:
    packs = [reader.read(place) for place in request.places]
    return pad_batch(make_batch(packs, recipe, request.places, request.counts), recipe)


def _take_over(line: socket.socket, made: SimpleQueue[Batch | LmmsError | None], pin: bool) -> None:
    try:
        while True:
            made.put(receive(line, pin))
    except (EOFError, ConnectionError):
        pass
    finally:
        made.put(None)
