"""A bench that is cut short, at whatever piece and by whatever, has left a whole report that says what is missing."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tools.gpu.bench import Bench
from tools.gpu.main import ROOT, stopping
from tools.gpu.processes import Piece, begin
from tools.gpu.show import show
from tools.gpu.sizes import MINI

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


def good(settings: dict[str, Any]) -> Iterator[Any]:
    yield {"value": 1}


def full(settings: dict[str, Any]) -> Iterator[Any]:
    yield {"before": True}
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def hangs(settings: dict[str, Any]) -> Iterator[Any]:
    yield {"pid": os.getpid()}
    time.sleep(600)


def wrong(settings: dict[str, Any]) -> Iterator[Any]:
    yield [{"passed": True}, {"passed": False}]


KINDS = {f.__name__: f for f in (good, full, hangs, wrong)}


def piece(kind: str, seconds: float = 60.0, **others: Any) -> Piece:
    return Piece(name=f"a piece that is {kind}", kind=kind, settings={}, seconds=seconds, **others)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("tools.gpu.processes.results_of", lambda kind, settings: KINDS[kind](settings))
    began = time.monotonic()
    screen = Console(file=io.StringIO(), width=200)
    return Bench(tmp_path, tmp_path / "report.json", began + 100.0, screen, began, sizes=MINI)


def on_disk(bench: Bench) -> dict[str, Any]:
    assert bench.out is not None
    report: dict[str, Any] = json.loads(bench.out.read_text(encoding="utf-8"))
    return report


def test_after_each_piece_the_report_is_whole_and_names_what_is_missing(bench: Bench) -> None:
    bench.waiting = [piece("good"), piece("full"), piece("hangs", 1.0)]
    names = [one.name for one in bench.waiting]
    found = []
    for one in list(bench.waiting):
        bench.keep(bench.run(one))
        report = on_disk(bench)
        assert [each["name"] for each in report["pieces"]] == names
        assert report.keys() >= {"facts", "sizes", "trainings", "recipes", "goals", "missing", "seconds"}
        show(report, bench.screen)
        found.append((report["complete"], report["passed"], report["missing"]))
    waits = "not run: the bench has not come to it"
    memory = "no memory: CUDA out of memory. Tried to allocate 20.00 GiB"
    assert found[0] == (False, False, {names[1]: waits, names[2]: waits})
    assert found[1] == (False, False, {names[1]: memory, names[2]: waits})
    assert found[2][0]
    assert found[2][2].keys() == {names[1], names[2]}
    assert found[2][2][names[2]].startswith("too slow: not done after")
    assert on_disk(bench)["faults"] == [names[2]]
    assert [each["result"] is not None for each in on_disk(bench)["pieces"]] == [True, True, True]


def test_a_fault_of_others_is_told_and_does_not_decide(bench: Bench) -> None:
    bench.keep(bench.run(piece("wrong", ours=False)))
    assert (on_disk(bench)["passed"], on_disk(bench)["faults"]) == (True, [])
    bench.keep(bench.run(piece("wrong")))
    assert (on_disk(bench)["passed"], on_disk(bench)["faults"]) == (False, ["a piece that is wrong"])


def test_it_is_no_fault_of_a_piece_that_the_benchs_time_is_over(bench: Bench) -> None:
    bench.deadline = time.monotonic() + 2.0
    bench.keep(bench.run(piece("hangs", least=1.0)))
    bench.keep(bench.run(piece("good")))
    report = on_disk(bench)
    assert [one["outcome"] for one in report["pieces"]] == ["not run", "not run"]
    assert report["missing"]["a piece that is hangs"].startswith("not run: the bench's time was over")
    assert report["missing"]["a piece that is good"] == "not run: 0 s were left"
    assert report["passed"]


def test_pieces_side_by_side_share_the_time_of_one(bench: Bench) -> None:
    began = time.monotonic()
    several = [begin(replace(piece("hangs", 2.0), name=str(i)), bench.scratch, "fork") for i in range(3)]
    outcomes = [bench.end(running).outcome for running in several]
    assert outcomes == ["too slow"] * 3
    assert time.monotonic() - began < 5.5


def test_a_signal_ends_the_piece_that_runs_and_the_rest_is_not_begun(bench: Bench) -> None:
    bench.waiting = [piece("hangs"), piece("good")]
    with stopping(bench):
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        began = time.monotonic()
        bench.keep(bench.run(bench.waiting[0]))
        assert time.monotonic() - began < 20
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert bench.run(bench.waiting[0]).outcome == "not run"
    report = on_disk(bench)
    assert (report["complete"], report["passed"], report["stopped"]) == (False, False, "stopped by SIGTERM")
    assert report["missing"] == {
        "a piece that is hangs": "stopped: stopped by SIGTERM",
        "a piece that is good": "not run: stopped by SIGTERM",
    }
    with pytest.raises(ProcessLookupError):
        os.kill(report["pieces"][0]["result"]["pid"], 0)
    assert isinstance(bench.screen.file, io.StringIO)
    show(report, bench.screen)
    assert "stopped by SIGTERM in" in bench.screen.file.getvalue()


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the command trains full-size models")
def test_the_command_that_is_told_to_end_leaves_its_report(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, str(ROOT / "tools" / "gpu" / "run"), "--out", str(out), "--only", "^ceilings|^loss"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    assert process.stdout.readline().startswith("facts")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["stopped"] == "stopped by SIGTERM"
    assert not report["complete"]
    assert {"ceilings", "loss chunked"} <= report["missing"].keys()
    assert "stopped by SIGTERM in" in said
