"""Run a function over tasks in worker processes: results in order, a bounded number of tasks under way.

The pools of the standard library do not say which task a dead worker had, nor how the worker ended; both are in the
message here. Workers never see Ctrl-C: the parent does, and ends them before the parent cleans up.
"""

import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from lmms.configs.errors import BuildError, LmmsError
from lmms.prep.rows.child import how_ended

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 2
"""Tasks for each worker that may be under way or done before the result that is next in order."""
_END: Any = object()


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: "Connection[Any, Any]"
    task: int | None = None
    """Number of the task that the worker has."""
    has: str = ""
    """What to call that task."""
    is_ready: bool = False


def map_ordered(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    setup: Callable[[], None],
    name_of: Callable[[Task], str],
) -> Generator[Result, None, None]:
    """function(task) of each task, in worker processes; with 0 workers in this process. `setup` runs once in each.

    name_of: what to call a task in the message about a worker that died with it. BuildError for a dead worker; an
    exception of `function` is raised here. Close this iterator when it is left early: that ends the workers.
    """
    if not workers:
        setup()
        yield from map(function, tasks)
        return
    with _started(workers, function, setup) as pool:
        results: dict[int, Result] = {}
        given = due = 0
        left = iter(tasks)
        following = next(left, _END)
        while following is not _END or due < given:
            for worker in pool:
                is_idle = worker.is_ready and worker.task is None
                if is_idle and following is not _END and given < due + _AHEAD * workers:
                    _give(worker, given, following, name_of(following))
                    following = next(left, _END)
                    given += 1
            if due in results:
                yield results.pop(due)
                due += 1
            else:
                results |= _take(pool)


@contextmanager
def _started(workers: int, function: Callable[[Any], Any], setup: Callable[[], None]) -> Iterator[list[_Worker]]:
    # Not fork: the parent has threads (Arrow's, the tokenizer's), and a forked child could inherit a held lock.
    context = multiprocessing.get_context("spawn")
    pool: list[_Worker] = []
    try:
        resource_tracker.ensure_running()  # or the first start does, and ends the mask
        # A worker inherits this mask for good.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(workers):
                pipe, its_end = context.Pipe()
                process = context.Process(target=_work, args=(its_end, function, setup), daemon=True)
                process.start()
                its_end.close()
                pool.append(_Worker(process, pipe))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield pool
    finally:
        for worker in pool:
            worker.process.kill()
        for worker in pool:
            worker.process.join()
            worker.pipe.close()


def _give(worker: _Worker, number: int, task: Any, name: str) -> None:
    worker.task, worker.has = number, name
    try:
        worker.pipe.send(task)
    except OSError:
        raise _death(worker) from None


def _take(pool: Sequence[_Worker]) -> dict[int, Any]:
    """The results of the workers that have one, after a wait for the first."""
    results = {}
    by_pipe = {worker.pipe: worker for worker in pool}
    for pipe in wait(list(by_pipe)):
        worker = by_pipe[pipe]  # type: ignore[index]
        try:
            result, error = worker.pipe.recv()
        except (EOFError, OSError):
            raise _death(worker) from None
        if error is not None:
            raise error
        if worker.task is None:
            worker.is_ready = True
        else:
            results[worker.task] = result
        worker.task = None
    return results


def _death(worker: _Worker) -> BuildError:
    worker.process.join(10)
    code = worker.process.exitcode or 0
    if not worker.is_ready and code == 1:
        return BuildError(
            "a worker process could not start, for the reason above; in a script, the call of build_shards has to stand"
            " under `if __name__ == '__main__':`, or workers=0 has no processes"
        )
    return BuildError(f"a worker process {how_ended(code)}; it had {worker.has or 'no records yet'}")


def _work(pipe: "Connection[Any, Any]", function: Callable[[Any], Any], setup: Callable[[], None]) -> None:
    """The life of a worker: until the parent ends it, or is gone."""
    setup()
    pipe.send((None, None))
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        result, fault = None, None
        try:
            result = function(task)
        except Exception as error:  # noqa: BLE001  (raised again in the parent)
            fault = _portable(error)
        pipe.send((result, fault))


def _portable(error: Exception) -> Exception:
    """An exception that the parent can rebuild, with the traceback of this process unless it is for the user."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  (an exception may refuse to be pickled in any way)
        error = RuntimeError(f"{type(error).__name__}: {error}")
    if not isinstance(error, LmmsError):
        error.add_note("In a worker process:\n" + traceback.format_exc())
    return error
