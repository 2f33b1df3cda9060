"""Which Ray cluster a build works on."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from lmms.configs.errors import ConfigError
from lmms.configs.words import counted

_OOM_RETRIES = 3
"""How often Ray tries a task again that its machine had no memory for, as often as a task whose worker died."""
_ANSWER_S = 10.0
"""Seconds in which a machine of a cluster has to take a connection."""


@contextmanager
def ray_cluster() -> Iterator[str]:
    """Connect to a Ray cluster for the block; yields what it is, in words.

    The cluster is that which this process is connected to, or that of RAY_ADDRESS, or one that runs on this machine; if
    there is none, this machine becomes one for the block. ConfigError without the package ray, or if the cluster of
    RAY_ADDRESS does not answer.
    """
    if find_spec("ray") is None:
        raise ConfigError("engine ray needs the package ray; install it: pip install 'lmms[ray]'")
    # Read when ray is imported. By default a task that takes all memory is tried again for ever.
    os.environ.setdefault("RAY_task_oom_retries", f"{_OOM_RETRIES}")
    import ray

    if ray.is_initialized():
        yield _described("the Ray cluster of this process")
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that starts here tells nobody
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    try:
        context = ray.init(address="auto", **quiet)
        place = f"the Ray cluster at {context.address_info['gcs_address']}"
    except ConnectionError:
        ray.init(address="local", include_dashboard=False, **quiet)
        place = "a Ray cluster of this machine alone"
    try:
        yield _described(place)
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """ConfigError for the address of a cluster that does not answer: Ray itself asks for minutes, without a word."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return
    if "://" in host:
        raise ConfigError(
            f"RAY_ADDRESS is {address}, expected HOST:PORT; start the build on a machine of the cluster, as"
            " `ray job submit` does"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster answers at {address}, which RAY_ADDRESS names ({error}); start one there, as `ray start"
            " --head` does, or unset RAY_ADDRESS for a cluster of this machine alone"
        ) from error


def _described(place: str) -> str:
    import ray

    nodes = sum(node["Alive"] for node in ray.nodes())
    return f"{place}, {counted(nodes, 'node')}, {counted(cores(), 'core')}"


def cores() -> int:
    """Cores of the cluster that this process is connected to."""
    import ray

    return max(int(ray.cluster_resources().get("CPU", 1)), 1)
