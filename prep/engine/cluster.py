"""The work of a build as tasks of a Ray cluster. Ray schedules them, moves rows between machines, and runs again what a
dead worker or machine had.

A task for each group of sources reads its rows and yields chunks, which go from machine to machine. A task for some
chunks makes their samples. A task for each shard writes it. Only what became of the chunks comes to this process.

Chunks that kill the worker each time that Ray tries go to one more task, which does them in a process of its own as the
engine of one machine does: there the record that kills is known, and lost alone.
"""

import os
import socket
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4

from lmms.configs.errors import BuildError, ConfigError, LmmsError
from lmms.configs.settings.prep import LEAST_MEMORY
from lmms.configs.words import counted
from lmms.prep.engine.memory import hold_to_share
from lmms.prep.engine.processes import map_ordered

Piece = TypeVar("Piece")
Group = TypeVar("Group")

_AHEAD = 2
"""Tasks for each core of the cluster that may be under way or done before the result that is next in order."""
_READ_AHEAD = 4
"""Batches that a reading task may have yielded before they are taken."""
_BATCH = 16
"""Pieces of one task: this process takes some milliseconds for each task, whatever is in it."""
_OOM_RETRIES = 3
"""How often Ray tries a task again that its machine had no memory for, as often as a task whose worker died."""
_ANSWER_S = 10.0
"""Seconds in which a machine of a cluster has to take a connection."""
_READY: set[str] = set()
"""Names of the calls that this worker process is set up for."""

Again: TypeAlias = "Callable[[tuple[int, Any], str, int | None], tuple[int, Any]]"
"""(task, how its process ended, the last step) -> the task to do in its place, see map_ordered."""


@dataclass(frozen=True, slots=True)
class Call:
    """A function that workers run, and what each of them needs before."""

    function: Callable[[tuple[int, Any]], Any]
    """(number, piece) -> result."""
    setup: Callable[[], object]
    places: tuple[Path, ...]
    """Folders and files that every machine has to reach."""


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
    return f"{place}, {counted(nodes, 'node')}, {counted(_cores(), 'core')}"


def _cores() -> int:
    import ray

    return max(int(ray.cluster_resources().get("CPU", 1)), 1)


def tasks_on_ray(
    call: Call,
    pieces: Iterable[tuple[int, Any]],
    name_of: Callable[[int], str],
    instead: Callable[[], Call] | None = None,
) -> Generator[Any, None, None]:
    """call.function((number, piece)) of each, in tasks; the results in order. What it raises is raised here.

    name_of: number of a piece -> what to call it in the message if Ray gives up on it, a BuildError. instead: what to
    call, once, with a piece that killed the worker each time that Ray tried. Close this iterator when it is left early:
    that ends the tasks.
    """
    import ray

    run, shared = ray.remote(_run), _shared(call)
    pending: deque[tuple[int, Any, Any]] = deque()

    def first() -> Any:
        number, piece, task = pending[0]
        if instead and _killed_its_worker(task):
            task = run.remote(_shared(instead()), number, piece)
            pending[0] = (number, piece, task)
        result = _result(name_of, number, task)
        pending.popleft()
        return result

    try:
        for number, piece in pieces:
            pending.append((number, piece, run.remote(shared, number, piece)))
            while len(pending) >= _AHEAD * _cores():
                yield first()
        while pending:
            yield first()
    finally:
        tasks = [task for *_, task in pending]
        # Ray ends this process now and then where a task is cancelled that has just ended.
        for task in ray.wait(tasks, num_returns=len(tasks), timeout=0)[1] if tasks else ():
            ray.cancel(task, force=True)


def _shared(call: Call) -> Any:
    """The call as all tasks take it, moved to each machine once."""
    import ray

    return ray.put((uuid4().hex, call, Path.cwd()))


def _killed_its_worker(task: Any) -> bool:
    """Whether Ray gave up on a task since its worker died, or since its machine had no memory left, after a wait."""
    import ray
    from ray.exceptions import OutOfMemoryError, RayError, WorkerCrashedError

    try:
        ray.get(task)
    except (WorkerCrashedError, OutOfMemoryError):
        return True
    except RayError:  # raised again where the result is taken
        return False
    return False


def groups_on_ray(
    call: Call,
    read: Callable[[Group], Iterator[Piece]],
    groups: Sequence[Group],
    rest: Iterator[Piece],
    name_of: Callable[[Group], str],
    again: Callable[[], Again],
) -> Generator[Any, None, None]:
    """call.function((number, piece)) of each piece of each group, in tasks, as tasks_on_ray does; then of `rest`.

    read: a group -> its pieces, in a task. The results come in the order of the groups; no two pieces have the same
    number. name_of: what to call a group. again: called when pieces have killed workers; what it returns says how they
    are done in a process of their own.
    """
    arrivals = _arrivals(call, read, groups)
    group_of: list[int] = []

    def numbered() -> Iterator[tuple[int, Any]]:
        for group, batch in chain(arrivals, ((len(groups), batch) for batch in _batches(rest))):
            group_of.append(group)
            yield len(group_of) - 1, batch

    def name(number: int) -> str:
        group = group_of[number]
        return name_of(groups[group]) if group < len(groups) else "records in memory"

    def alone() -> Call:
        return replace(call, function=partial(_each_alone, call, again()), setup=_nothing)

    waiting: defaultdict[int, list[Any]] = defaultdict(list)
    due = 0
    each = replace(call, function=partial(_each, call.function))
    with closing(arrivals), closing(tasks_on_ray(each, numbered(), name, alone)) as results:
        for number, batch in enumerate(results):
            waiting[group_of[number]].append(batch)
            while waiting[due]:
                batch = waiting[due].pop(0)
                if batch is None:
                    due += 1
                else:
                    yield from batch


def _each(function: Callable[[tuple[int, Any]], Any], task: tuple[int, Sequence[Any]]) -> list[Any]:
    return list(map(function, _numbered(task)))


def _numbered(task: tuple[int, Sequence[Any]]) -> Iterator[tuple[int, Any]]:
    number, batch = task
    return ((number * _BATCH + i, piece) for i, piece in enumerate(batch))


def _each_alone(call: Call, again: Again, task: tuple[int, Sequence[Any]]) -> list[Any]:
    """What _each gives, from a process that may die with a piece. Its memory is bounded, lest the machine has none."""
    setup = partial(_bounded, _share_of_a_core(), call.setup)
    return list(map_ordered(call.function, _numbered(task), 1, setup, lambda task: "some rows", again))


def _share_of_a_core() -> int:
    """Bytes of the memory that Ray counts on this machine, for each core of it."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    (resources,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    return max(int(resources.get("memory", 0) / resources.get("CPU", 1)), LEAST_MEMORY // 2)


def _bounded(most_bytes: int, setup: Callable[[], None]) -> None:
    hold_to_share(most_bytes)
    setup()


def _nothing() -> None:
    """A task that does its work in another process needs no set-up in its own."""


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    left = iter(pieces)
    while batch := list(islice(left, _BATCH)):
        yield batch


def _arrivals(
    call: Call, read: Callable[[Group], Iterator[Piece]], groups: Sequence[Group]
) -> Generator[tuple[int, Any], None, None]:
    """(number of a group, a batch of its pieces), whichever is there first, and None behind the last of a group."""
    import ray

    # Without a core, since it mostly waits for a disk, or for its batches to be taken.
    options = {"num_cpus": 0, "scheduling_strategy": "SPREAD", "_generator_backpressure_num_objects": _READ_AHEAD}
    task = ray.remote(**options)(_read)
    shared = ray.put((read, call.places, Path.cwd()))
    opened: dict[Any, int] = {}
    left = enumerate(groups)
    try:
        while True:
            readers = sum(node["Alive"] for node in ray.nodes())
            while len(opened) < readers and (following := next(left, None)):
                opened[task.remote(shared, following[1])] = following[0]
            if not opened:
                break
            stream = ray.wait(list(opened), num_returns=1, fetch_local=False)[0][0]
            batch = next(stream, None)
            yield opened[stream], batch
            if batch is None:
                del opened[stream]
    finally:
        for stream in opened:
            ray.cancel(stream, force=True)


def _read(
    shared: tuple[Callable[[Group], Iterator[Piece]], Sequence[Path], Path], group: Group
) -> Iterator[list[Piece]]:
    read, places, folder = shared
    _check_shared(places, folder)
    yield from _batches(read(group))


def _run(shared: tuple[str, Call, Path], number: int, piece: Any) -> Any:
    name, call, folder = shared
    if piece is None:  # behind the last of a group
        return None
    if name not in _READY:
        _check_shared(call.places, folder)
        call.setup()
        _READY.add(name)
    return call.function((number, piece))


def _check_shared(places: Sequence[Path], folder: Path) -> None:
    """ConfigError if this machine does not reach the places; they may be relative to the folder of the driver."""
    with suppress(OSError):
        os.chdir(folder)
    for place in places:
        if not place.exists():
            raise ConfigError(
                f"machine {socket.gethostname()} of the Ray cluster does not reach {place}; with engine ray, sources,"
                " media, the model and the folder of the build have to be on a disk that all machines share"
            )


def _result(name_of: Callable[[int], str], number: int, task: Any) -> Any:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(task)
    except RayTaskError as error:
        cause: BaseException = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if not isinstance(cause, LmmsError):
            cause.add_note(f"In a task of Ray:\n{error}")
        raise cause from None
    except RayError as error:
        said = str(error).strip().partition("\n")[0]
        raise BuildError(f"Ray gave up on {name_of(number)}: {said}") from error
