"""Worker processes: results in order, a dead worker named with its task, no worker that outlives a build."""

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from lmms.configs.errors import BuildError, SourceError
from lmms.prep.engine.processes import map_ordered


def nothing() -> None:
    """No set-up."""


def slow_if_even(task: int) -> tuple[int, int]:
    time.sleep(0.05 if task % 2 == 0 else 0)
    return task, os.getpid()


def die(how: signal.Signals, task: int) -> int:
    if task == 3:
        os.kill(os.getpid(), how)
    return task


def fail(error: Exception, task: int) -> int:
    raise error


def name_of(task: int) -> str:
    return f"row {task} of a.jsonl"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    results = list(map_ordered(slow_if_even, range(12), workers, nothing, name_of))
    assert [task for task, _ in results] == list(range(12))
    processes = {pid for _, pid in results}
    assert (len(processes), os.getpid() in processes) == (workers or 1, not workers)


def test_only_a_few_tasks_are_taken_ahead() -> None:
    taken: list[int] = []
    tasks = (taken.append(i) or i for i in range(100))  # type: ignore[func-returns-value]
    with closing(map_ordered(slow_if_even, tasks, 2, nothing, name_of)) as results:
        next(results)
        assert len(taken) < 10


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (signal.SIGSEGV, "SIGSEGV, a crash in a library; it had"),
        (signal.SIGKILL, "SIGKILL, as the system does when memory"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_dead_worker_is_named_with_its_task_and_its_signal(how: signal.Signals, said: str, workers: int) -> None:
    with pytest.raises(BuildError, match=rf"a worker process was ended by {said}.*row 3 of a\.jsonl"):
        list(map_ordered(partial(die, how), range(8), workers, nothing, name_of))


def test_a_worker_that_cannot_start_says_what_to_do() -> None:
    with pytest.raises(BuildError, match="under `if __name__ == '__main__':`"):
        list(map_ordered(slow_if_even, range(3), 2, partial(fail, ValueError("no set-up"), 0), name_of))


@pytest.mark.parametrize("error", [SourceError("a.jsonl is damaged"), OSError(errno.ENOSPC, "No space left")])
def test_an_error_of_a_task_is_raised_here_as_it_was(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error.args[-1])) as caught:
        list(map_ordered(partial(fail, error), range(3), 2, nothing, name_of))
    assert caught.value.args == error.args


def children() -> set[str]:
    return {line for task in Path("/proc/self/task").iterdir() for line in (task / "children").read_text().split()}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc, which only Linux has")
def test_no_worker_outlives_an_iterator_that_is_closed() -> None:
    before = children()
    results = map_ordered(slow_if_even, range(100), 2, nothing, name_of)
    next(results)
    assert len(children() - before) >= 2
    results.close()
    assert len(children() - before) <= 1  # the standard library's tracker of resources stays


@pytest.mark.parametrize("seconds", [0.05, 0.3, 1.5])
def test_ctrl_c_ends_the_workers_without_a_word_of_theirs(seconds: float, tmp_path: Path) -> None:
    script = tmp_path / "build.py"
    script.write_text(
        "import time\n"
        "from lmms.prep.engine.processes import map_ordered\n"
        "def work(task): time.sleep(30)\n"
        "def nothing(): pass\n"
        "if __name__ == '__main__':\n"
        "    print('begun', flush=True)\n"
        "    try:\n"
        "        list(map_ordered(work, range(9), 2, nothing, str))\n"
        "    except KeyboardInterrupt:\n"
        "        print('stopped')\n"
    )
    build = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert build.stdout is not None
    assert build.stdout.readline() == "begun\n"
    time.sleep(seconds)
    os.killpg(build.pid, signal.SIGINT)  # to all, as a terminal does
    out, err = build.communicate(timeout=100)
    assert (out, err, build.returncode) == ("stopped\n", "", 0)
