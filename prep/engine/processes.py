"""Run a function over tasks in worker processes: results in order, a bounded number of tasks under way.

The pools of the standard library do not say which task a dead worker had, nor how the worker ended; here both decide
how the task is tried again, in a process of its own. Workers never see Ctrl-C: the parent does, and ends them before
the parent cleans up.
"""

import ctypes
import errno
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import monotonic
from typing import Any, Literal, TypeAlias, TypeVar

from lmms.configs.errors import BuildError, LmmsError
from lmms.prep.rows.child import how_ended

Task = TypeVar("Task")
Result = TypeVar("Result")

Setup: TypeAlias = Callable[[], Callable[[], None] | None]
"""What a worker does before its first task; it may return what the worker does after the last."""

_Message: TypeAlias = "tuple[Literal['ready', 'began', 'made', 'failed'], Any]"
"""A worker's word to its parent, with nothing, the number of a step, a result or an error."""

_AHEAD = 2
"""Tasks for each worker that may be under way or done before the result that is next in order."""
_MOST_DEATHS = 2
"""Deaths in a row, beyond one of each worker, after which the build stops: the machine is to blame, or the code."""
_END_S = 5.0
"""Seconds in which workers may end by themselves: so they end what they started, whose CPU time then counts too."""
_PATIENCE_S = 5.0
"""Seconds after which others start beside a worker that begins alone, whatever its first task is."""
_NO_MEMORY = errno.ENOMEM
"""Exit status of a worker that has no memory left: what Python could still do then is not known."""
_PR_SET_PDEATHSIG = 1
_END: Any = object()


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: "Connection[Any, Any]"
    to_do: tuple[int, Any] | None = None
    """Number and task that the worker has, or will have as soon as it is ready."""
    step: int | None = None
    """Step of the task that the worker has begun."""
    started: float = field(default_factory=monotonic)
    ready: float | None = None
    """When the worker was ready for its first task."""


def same_task(task: Task, how: str, step: int | None) -> Task:
    """The task of a dead worker as it was, see map_ordered."""
    return task


def always(under_way: Sequence[Task], task: Task) -> bool:
    """Any number of tasks may be under way, see map_ordered."""
    return True


def map_ordered(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    setup: Setup,
    name_of: Callable[[Task], str],
    again: Callable[[Task, str, int | None], Task] = same_task,
    may_start: Callable[[Sequence[Task], Task], bool] = always,
    share_done: Callable[[], float] | None = None,
) -> Generator[Result, None, None]:
    """function(task) of each task, in worker processes; with 0 workers in this process. `setup` runs once in each, and
    what it returns when there are no more tasks.

    A task whose worker died is done in a new process. again: (task, how the worker ended, the last step of step_begun)
    -> the task to do in its place; it may raise BuildError. may_start: (tasks under way, the next) -> whether the next
    may begin beside them; always where there are none. name_of: what to call a task in a message. BuildError where
    process after process dies; an exception of `function` is raised here. Close this iterator when it is left early:
    that ends the workers. With 0 workers, this process dies with what would end a worker.

    share_done: how much of the tasks is done, from 0 to 1; then a worker begins alone, and the others start as soon as
    what is left would take it longer than their start. None: all start at once.
    """
    if not workers:
        leave = setup()
        try:
            yield from map(function, tasks)
        finally:
            if leave:
                leave()
        return
    with _started(1 if share_done else workers, function, setup) as (pool, start):
        results: dict[int, Result] = {}
        begun: tuple[float, float] | None = None
        given = due = deaths = 0
        left = iter(tasks)
        following = next(left, _END)
        while following is not _END or due < given:
            for worker in pool:
                is_idle = worker.ready is not None and worker.to_do is None
                if not is_idle or following is _END or given >= due + _AHEAD * workers:
                    continue
                if may_start([other.to_do[1] for other in pool if other.to_do], following):
                    worker.to_do = (given, following)
                    _send(worker)
                    following = next(left, _END)
                    given += 1
            if due in results:
                yield results.pop(due)
                due += 1
                if share_done and begun is None:
                    begun = (monotonic(), share_done())
                continue
            pause = None
            if share_done and len(pool) < workers and following is not _END:
                pause = _pause(pool[0], begun, share_done())
                if pause == 0:
                    pool += [start() for _ in range(workers - len(pool))]
            dead, has_news = _take(pool, results, pause or None)
            deaths = len(dead) + (0 if has_news else deaths)
            for worker in dead:
                to_do, how = worker.to_do, _how_it_died(worker)
                if deaths > workers + _MOST_DEATHS:
                    raise BuildError(
                        f"a worker process {how}; it had {name_of(to_do[1]) if to_do else 'no records yet'}, and the"
                        f" {deaths - 1} before it died too"
                    )
                pool.remove(worker)
                pool.append(start())
                if to_do:
                    pool[-1].to_do = (to_do[0], again(to_do[1], how, worker.step) if worker.ready else to_do[1])


@contextmanager
def _started(
    workers: int, function: Callable[[Any], Any], setup: Setup
) -> Iterator[tuple[list[_Worker], Callable[[], _Worker]]]:
    """Yields the workers, which end with this block, and a function that starts one more."""
    # Not fork: the parent has threads (Arrow's, the tokenizer's), and a forked child could inherit a held lock.
    context = multiprocessing.get_context("spawn")
    pool: list[_Worker] = []

    def start() -> _Worker:
        resource_tracker.ensure_running()  # or the first start does, and ends the mask
        # A worker inherits this mask for good.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pipe, its_end = context.Pipe()
            process = context.Process(target=_work, args=(its_end, function, setup), daemon=True)
            process.start()
            its_end.close()
            return _Worker(process, pipe)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        for _ in range(workers):
            pool.append(start())
        yield pool, start
        for worker in pool:
            worker.pipe.close()
        until = monotonic() + _END_S
        for worker in pool:
            worker.process.join(max(until - monotonic(), 0))
    finally:
        for worker in pool:
            worker.process.kill()
        for worker in pool:
            worker.process.join()
            worker.pipe.close()


def _pause(first: _Worker, begun: tuple[float, float] | None, done: float) -> float | None:
    """Seconds until others should start beside a worker that begins alone; None while it starts itself.

    begun: when its first result was there, and how much was done then. Until then a worker starts: it loads what it
    needs for its first task. Others take as long, so they start when what is left takes the first longer than that, by
    what it has done since, and when it has worked as long without a word.
    """
    if first.ready is None:
        return None
    if begun is None:
        return max(first.ready + _PATIENCE_S - monotonic(), 0.0)
    start, busy = begun[0] - first.started, monotonic() - begun[0]
    left = busy * (1 - done) / (done - begun[1]) if done > begun[1] else 0.0
    return 0.0 if max(left, busy) > start else start - busy


def _send(worker: _Worker) -> None:
    """Send a worker its task. If the worker is dead, its pipe says so when it is read."""
    assert worker.to_do is not None
    worker.step = None
    with suppress(OSError):
        worker.pipe.send(worker.to_do[1])


def _take(pool: list[_Worker], results: dict[int, Any], seconds: float | None = None) -> tuple[list[_Worker], bool]:
    """Put the results of the workers that have one into `results`, after a wait for the first word of a worker.

    seconds: the longest wait.

    Returns the workers that are dead, and whether any worker came further with its task.
    """
    dead, has_news = list[_Worker](), False
    by_pipe = {worker.pipe: worker for worker in pool}
    for pipe in wait(list(by_pipe), seconds):
        worker = by_pipe[pipe]  # type: ignore[index]
        message: _Message
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            dead.append(worker)
            continue
        match message:
            case "ready", _:
                worker.ready = monotonic()
                if worker.to_do:
                    _send(worker)
            case "began", step:
                worker.step, has_news = step, True
            case "made", result:
                assert worker.to_do is not None
                results[worker.to_do[0]] = result
                worker.to_do, has_news = None, True
            case _, error:
                raise error
    return dead, has_news


def _how_it_died(worker: _Worker) -> str:
    """The end of a worker, for a sentence that begins with the worker. BuildError if no worker can start."""
    worker.process.join(10)
    worker.pipe.close()
    code = worker.process.exitcode or 0
    if worker.ready is None and code == 1:
        raise BuildError(
            "a worker process could not start, for the reason above; in a script, the call of build_shards has to stand"
            " under `if __name__ == '__main__':`, or workers=0 has no processes"
        )
    return "ran out of memory (fewer workers need less)" if code == _NO_MEMORY else how_ended(code)


_to_parent: "Connection[Any, Any] | None" = None
"""The pipe of this process, if it is a worker."""


def step_begun(step: int) -> None:
    """Tell the parent which step of its task this worker begins, for `again` of map_ordered. No worker: nothing."""
    if _to_parent:
        _to_parent.send(("began", step))


def _work(pipe: "Connection[Any, Any]", function: Callable[[Any], Any], setup: Setup) -> None:
    """The life of a worker: until the parent ends it, or is gone."""
    global _to_parent
    _to_parent = pipe
    _die_with_the_parent()
    leave = setup()
    pipe.send(("ready", None))
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            if leave:
                leave()
            os._exit(0)  # what Python does at its end takes a third of a second
        except MemoryError:
            os._exit(_NO_MEMORY)
        answer: _Message
        try:
            answer = ("made", function(task))
        except MemoryError:
            os._exit(_NO_MEMORY)
        except Exception as error:  # noqa: BLE001  (raised again in the parent)
            answer = ("failed", _portable(error))
        try:
            pipe.send(answer)
        except OSError:  # nobody is there to read the answer
            return


def _die_with_the_parent() -> None:
    """Ask the system to end this process when its parent is killed: the next build must not meet its last writes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent and os.getppid() != parent.pid:  # it was too late for that
            os._exit(0)


def _portable(error: Exception) -> Exception:
    """An exception that the parent can rebuild, with the traceback of this process unless it is for the user."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  (an exception may refuse to be pickled in any way)
        error = RuntimeError(f"{type(error).__name__}: {error}")
    if not isinstance(error, LmmsError):
        error.add_note("In a worker process:\n" + traceback.format_exc())
    return error
