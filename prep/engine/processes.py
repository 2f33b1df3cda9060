"""Run a function over tasks in worker processes, results in order, a bounded number of tasks in flight."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from lmms.configs.errors import BuildError

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_ordered(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    setup: Callable[..., None],
    setup_args: tuple[object, ...],
) -> Iterator[Result]:
    """function(task) of each task. With one worker, in this process. `setup` runs once in each process."""
    if workers == 1:
        setup(*setup_args)
        yield from map(function, tasks)
        return
    # Not fork: the parent has threads (Arrow's, the tokenizer's), and a forked child could inherit a held lock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, setup, setup_args) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(function, task))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise BuildError(
                "a worker process died, out of memory or in a script without `if __name__ == '__main__':`; use fewer"
                " workers or a machine with more memory, or add that line"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
