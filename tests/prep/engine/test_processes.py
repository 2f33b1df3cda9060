"""Worker processes: results in order, a dead worker named with its task, no worker that outlives a build."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from lmms.configs.errors import BuildError, SourceError
from lmms.prep.engine.processes import map_ordered, step_begun


def nothing() -> None:
    """No set-up."""


def slow_if_even(task: int) -> tuple[int, int]:
    time.sleep(0.05 if task % 2 == 0 else 0)
    return task, os.getpid()


def die(how: signal.Signals, task: int) -> int:
    if task == 3:
        os.kill(os.getpid(), how)
    return task


def die_once(folder: Path, task: int) -> int:
    step_begun(10 * task)
    if task in (3, 4) and not (folder / str(task)).exists():
        (folder / str(task)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def take_memory(task: int) -> int:
    """A task that needs a gigabyte more than there is, and one that has enough."""
    if task == 1:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
        return len(bytes(2**30))
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


def pause(seconds: float, task: int) -> int:
    time.sleep(seconds)
    return os.getpid()


@pytest.mark.parametrize(("seconds", "processes"), [(0.0, 1), (1.0, 2)])
def test_others_start_when_what_is_left_takes_longer_than_a_start(seconds: float, processes: int) -> None:
    used = list[int]()
    results = map_ordered(
        partial(pause, seconds),
        range(8),
        2,
        partial(time.sleep, 0.5),
        name_of,
        share_done=lambda: len(used) / 8,
    )
    used.extend(results)
    assert len(set(used)) == processes


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
    with pytest.raises(BuildError, match=rf"a worker process was ended by {said}.*row 3 of a\.jsonl, and the . before"):
        list(map_ordered(partial(die, how), range(8), workers, nothing, name_of))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_task_of_a_dead_worker_is_done_by_a_new_process(workers: int, tmp_path: Path) -> None:
    told: list[tuple[int, str, int | None]] = []

    def again(task: int, how: str, step: int | None) -> int:
        told.append((task, how[:20], step))
        return task

    results = list(map_ordered(partial(die_once, tmp_path), range(9), workers, nothing, name_of, again))
    assert results == list(range(9))
    assert sorted(told) == [(3, "was ended by SIGKILL", 30), (4, "was ended by SIGKILL", 40)]


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc, which only Linux has")
def test_a_worker_without_memory_dies_and_its_task_may_become_another() -> None:
    told: list[str] = []

    def again(task: int, how: str, step: int | None) -> int:
        told.append(how)
        return 100

    assert list(map_ordered(take_memory, range(3), 2, nothing, name_of, again)) == [0, 100, 2]
    assert told == ["ran out of memory (fewer workers need less)"]


def test_an_idle_worker_that_dies_is_no_fault() -> None:
    with closing(map_ordered(slow_if_even, range(40), 2, nothing, name_of)) as results:
        _, pid = next(results)
        os.kill(pid, signal.SIGKILL)
        assert [task for task, _ in results] == list(range(1, 40))


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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent was killed")
def test_workers_end_at_once_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "build.py"
    script.write_text(
        "import os, pathlib, time\n"
        "from lmms.prep.engine.processes import map_ordered\n"
        "def work(task):\n"
        "    (pathlib.Path(__file__).parent / str(os.getpid())).touch()\n"
        "    time.sleep(600)\n"
        "def nothing(): pass\n"
        "if __name__ == '__main__':\n"
        "    list(map_ordered(work, range(9), 2, nothing, str))\n"
    )
    build = subprocess.Popen([sys.executable, script])
    deadline = time.monotonic() + 100
    while len(begun := [path.name for path in tmp_path.iterdir() if path.name.isdigit()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    build.kill()
    build.wait()
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in begun):
        assert time.monotonic() < deadline
        time.sleep(0.02)
