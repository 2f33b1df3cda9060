"""Pieces in their processes: what fails is named and ends alone, nothing outlives its time, and a bench that is cut
short, at whatever piece and by whatever, has left a whole report that says what is missing."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from lmms.configs.errors import ConfigError
from tools.gpu.main import Bench, stopping
from tools.gpu.pieces.models import MINI
from tools.gpu.processes import NotHereError, Outcome, Piece, begin, end
from tools.gpu.report.show import show

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
# Of Python 3.12, where pytest has threads; the bench itself has none.


def good(value: int = 1) -> Iterator[Any]:
    yield {"first": 1}
    yield {"second": value}


def wrong() -> Iterator[Any]:
    yield [{"passed": True}, {"passed": False}]


def hangs() -> Iterator[Any]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield {"pid": os.getpid(), "child": child.pid}
    time.sleep(600)


def dies() -> Iterator[Any]:
    os.kill(os.getpid(), 9)
    yield


def fails(error: Exception, cause: Exception | None = None) -> Callable[[], Iterator[Any]]:
    """A measure that gives a result and then raises this."""

    def failing() -> Iterator[Any]:
        yield {"kept": True}
        raise error from cause

    return failing


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def piece(measure: Callable[..., Iterator[Any]], seconds: float = 60.0, **others: Any) -> Piece:
    return Piece(name=f"piece that is {measure.__name__}", measure=measure, settings={}, seconds=seconds, **others)


def run(one: Piece, scratch: Path) -> Outcome:
    return end(begin(one, scratch, "fork"), one.seconds)


def is_gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().split()[2] == "Z"


def test_the_last_result_of_a_piece_counts(tmp_path: Path) -> None:
    outcome = run(replace(piece(good), settings={"value": 7}), tmp_path)
    assert (outcome.word, outcome.error, outcome.result) == ("done", "", {"second": 7})
    assert outcome.to_json().keys() == {
        *("name", "kind", "settings", "ours", "outcome", "error", "seconds", "result"),
    }


def test_a_piece_that_fails_keeps_what_it_gave_and_says_why(tmp_path: Path) -> None:
    outcome = run(piece(fails(ValueError("CUDA error: an illegal memory access was encountered"))), tmp_path)
    assert (outcome.word, outcome.result) == ("failed", {"kept": True})
    assert outcome.error.endswith("ValueError: CUDA error: an illegal memory access was encountered")
    assert "in failing" in outcome.error


NO_CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


@pytest.mark.parametrize(
    ("measure", "word", "error"),
    [
        (fails(NotHereError("the module flash_attn is not installed")), "not available", "the module flash_attn is"),
        (fails(ConfigError("flash-attn-3 needs compute capability 9.x")), "not available", "flash-attn-3 needs"),
        (fails(FULL), "no memory", "CUDA out of memory. Tried to allocate 20.00 GiB"),
        (fails(RuntimeError("backend failed"), FULL), "no memory", "backend failed"),
        (fails(RuntimeError(NO_CUBLAS)), "no memory", NO_CUBLAS),
        (fails(MemoryError()), "no memory", "MemoryError()"),
        (dies, "failed", "ended by signal 9"),
    ],
)
def test_an_outcome_says_in_a_word_and_a_line_what_happened(
    measure: Callable[[], Iterator[Any]], word: str, error: str, tmp_path: Path
) -> None:
    outcome = run(piece(measure), tmp_path)
    assert outcome.word == word
    assert outcome.error.startswith(error)
    assert "\n" not in outcome.error


def test_a_piece_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    began = time.monotonic()
    outcome = run(piece(hangs, 1.5), tmp_path)
    assert time.monotonic() - began < 20
    assert outcome.word == "too slow"
    assert outcome.error.startswith("not done after")
    assert is_gone(outcome.result["child"])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    began = time.monotonic()
    screen = Console(file=io.StringIO(), width=200)
    return Bench(tmp_path, tmp_path / "report.json", began, began + 100.0, screen, sizes=MINI)


def on_disk(bench: Bench) -> dict[str, Any]:
    assert bench.out is not None
    report: dict[str, Any] = json.loads(bench.out.read_text(encoding="utf-8"))
    return report


def test_after_each_piece_the_report_is_whole_and_names_what_is_missing(bench: Bench) -> None:
    bench.waiting = [piece(good), replace(piece(fails(FULL)), name="piece that is full"), piece(hangs, 1.0)]
    names = [waiting.name for waiting in bench.waiting]
    seen = []
    for waiting in list(bench.waiting):
        bench.keep(bench.run(waiting))
        report = on_disk(bench)
        assert [each["name"] for each in report["pieces"]] == names
        assert report.keys() >= {"facts", "sizes", "trainings", "recipes", "goals", "missing", "seconds"}
        show(report, bench.screen)
        seen.append((report["complete"], report["passed"], report["missing"]))
    waits = "not run: the bench has not come to it"
    memory = "no memory: CUDA out of memory. Tried to allocate 20.00 GiB"
    assert seen[0] == (False, False, {names[1]: waits, names[2]: waits})
    assert seen[1] == (False, False, {names[1]: memory, names[2]: waits})
    assert seen[2][0]
    assert seen[2][2].keys() == {names[1], names[2]}
    assert seen[2][2][names[2]].startswith("too slow: not done after")
    assert on_disk(bench)["faults"] == [names[2]]
    assert [each["result"] is not None for each in on_disk(bench)["pieces"]] == [True, True, True]


def test_a_fault_of_others_is_told_and_does_not_decide(bench: Bench) -> None:
    bench.keep(bench.run(piece(wrong, ours=False)))
    assert (on_disk(bench)["passed"], on_disk(bench)["faults"]) == (True, [])
    bench.keep(bench.run(piece(wrong)))
    assert (on_disk(bench)["passed"], on_disk(bench)["faults"]) == (False, ["piece that is wrong"])


def test_it_is_no_fault_of_a_piece_that_the_benchs_time_is_over(bench: Bench) -> None:
    bench.deadline = time.monotonic() + 1.0
    bench.keep(bench.run(piece(hangs, least=0.5)))
    bench.keep(bench.run(piece(good)))
    report = on_disk(bench)
    assert [each["outcome"] for each in report["pieces"]] == ["not run", "not run"]
    assert report["missing"]["piece that is hangs"].startswith("not run: the bench's time was over")
    assert report["missing"]["piece that is good"] == "not run: 0 s were left"
    assert report["passed"]


def test_pieces_side_by_side_share_the_time_of_one(bench: Bench) -> None:
    several = bench.begin([replace(piece(hangs, 1.0), name=str(i)) for i in range(3)])
    outcomes = [bench.end(running) for running in several]
    assert [outcome.word for outcome in outcomes] == ["too slow"] * 3
    assert max(outcome.seconds for outcome in outcomes) < 1.0 + 1.0 + 0.5


def test_a_signal_ends_the_piece_that_runs_and_the_rest_is_not_begun(bench: Bench) -> None:
    bench.waiting = [piece(hangs), piece(good)]
    with stopping(bench):
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        began = time.monotonic()
        bench.keep(bench.run(bench.waiting[0]))
        assert time.monotonic() - began < 20
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert bench.run(bench.waiting[0]).word == "not run"
    report = on_disk(bench)
    assert (report["complete"], report["passed"], report["stopped"]) == (False, False, "stopped by SIGTERM")
    assert report["missing"] == {
        "piece that is hangs": "stopped: stopped by SIGTERM",
        "piece that is good": "not run: stopped by SIGTERM",
    }
    assert is_gone(report["pieces"][0]["result"]["pid"])
    show(report, bench.screen)
    assert isinstance(bench.screen.file, io.StringIO)
    assert "stopped by SIGTERM in" in bench.screen.file.getvalue()
