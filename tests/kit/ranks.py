"""Gloo ranks as processes of their own."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing


def on_ranks(act: Callable[..., None], ranks: int, *arguments: Any) -> None:
    """Call act(rank, ranks, *arguments) on each of that many ranks, in an environment as of a launcher.

    `act` is a function of a module. What one raises is raised here.
    """
    torch.multiprocessing.spawn(_as_rank, (ranks, free_port(), act, arguments), nprocs=ranks)


def _as_rank(rank: int, ranks: int, port: int, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    act(rank, ranks, *arguments)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
