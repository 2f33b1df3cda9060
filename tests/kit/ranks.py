"""Gloo ranks as processes of their own."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

import torch
import torch.multiprocessing

# To import torch and transformers takes a process seconds: ranks are forked from a server that has them.
multiprocessing.set_forkserver_preload(["lmms.train.run", "tests.kit.runs"])


def on_ranks(act: Callable[..., None], ranks: int, *arguments: Any) -> None:
    """Call act(rank, ranks, *arguments) on each of that many ranks, in an environment as of a launcher.

    `act` is a function of a module. What one raises is raised here.
    """
    meeting = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    given = (ranks, {**os.environ, **meeting}, act, arguments)
    torch.multiprocessing.start_processes(_as_rank, given, nprocs=ranks, start_method="forkserver")


def _as_rank(
    rank: int, ranks: int, environment: dict[str, str], act: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    # The server has the variables of the first test that asked for ranks.
    os.environ.clear()
    os.environ |= {**environment, "RANK": str(rank)}
    act(rank, ranks, *arguments)


_ports = count(os.getpid() * 211)
"""Each process of tests looks from a place of its own."""


def free_port() -> int:
    """A port that nobody listens on, and that stays free until it is used.

    Linux gives connections ports from 32768 on: a port from there may be taken between the choice and the use.
    """
    while True:
        port = 10_000 + next(_ports) % 20_000
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
