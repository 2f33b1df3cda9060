"""Pieces in their processes: what fails is named and ends alone, and nothing outlives its time."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lmms.configs.errors import ConfigError
from tools.gpu.errors import NotHereError
from tools.gpu.main import ROOT
from tools.gpu.processes import Found, Piece, begin, end, not_begun, so_far

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
# Of Python 3.12, where pytest has threads; the bench itself has none.


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a piece of this kind from KINDS in a forked process."""
    monkeypatch.setattr("tools.gpu.processes.results_of", lambda kind, settings: KINDS[kind](settings))

    def run(kind: str, seconds: float = 60.0, **settings: Any) -> Found:
        piece = Piece(name=f"a piece, {kind}", kind=kind, settings=settings, seconds=seconds)
        return end(begin(piece, tmp_path, "fork"), seconds)

    return run


def good(settings: dict[str, Any]) -> Iterator[Any]:
    yield {"first": 1}
    yield {"second": settings["value"]}


def fails_late(settings: dict[str, Any]) -> Iterator[Any]:
    yield {"kept": True}
    raise ValueError("CUDA error: an illegal memory access was encountered")


def missing(settings: dict[str, Any]) -> Iterator[Any]:
    raise NotHereError("the module flash_attn is not installed")
    yield


def refused(settings: dict[str, Any]) -> Iterator[Any]:
    raise ConfigError("kernels.attention is flash-attn-3, but it needs compute capability 9.x")
    yield


def full(settings: dict[str, Any]) -> Iterator[Any]:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    yield


def full_while_compiling(settings: dict[str, Any]) -> Iterator[Any]:
    try:
        yield from full(settings)
    except RuntimeError as error:
        raise RuntimeError("backend failed") from error


def full_in_a_library(settings: dict[str, Any]) -> Iterator[Any]:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    yield


def full_machine(settings: dict[str, Any]) -> Iterator[Any]:
    raise MemoryError
    yield


def hangs(settings: dict[str, Any]) -> Iterator[Any]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield {"child": child.pid}
    time.sleep(600)


def dies(settings: dict[str, Any]) -> Iterator[Any]:
    os.kill(os.getpid(), 9)
    yield


FULL = (full, full_while_compiling, full_in_a_library, full_machine)
KINDS = {f.__name__: f for f in (good, fails_late, missing, refused, *FULL, hangs, dies)}


def test_the_last_result_of_a_piece_counts(one: Any) -> None:
    found = one("good", value=7)
    assert (found.outcome, found.error, found.result) == ("done", "", {"second": 7})
    assert found.settings == {"value": 7}


def test_a_piece_that_fails_keeps_what_it_gave_and_says_why(one: Any) -> None:
    found = one("fails_late")
    assert found.outcome == "failed"
    assert found.result == {"kept": True}
    assert found.error.endswith("ValueError: CUDA error: an illegal memory access was encountered")
    assert "fails_late" in found.error


@pytest.mark.parametrize(
    ("kind", "outcome", "error"),
    [
        ("missing", "not available", "the module flash_attn is not installed"),
        ("refused", "not available", "kernels.attention is flash-attn-3, but it needs compute capability 9.x"),
        ("full", "no memory", "CUDA out of memory. Tried to allocate 20.00 GiB"),
        ("full_while_compiling", "no memory", "backend failed"),
        (
            "full_in_a_library",
            "no memory",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        ),
        ("full_machine", "no memory", "MemoryError()"),
    ],
)
def test_what_is_no_fault_has_an_outcome_of_its_own(one: Any, kind: str, outcome: str, error: str) -> None:
    found = one(kind)
    assert (found.outcome, found.error, found.result) == (outcome, error, None)


def test_a_piece_that_takes_too_long_is_ended_with_all_that_it_started(one: Any) -> None:
    began = time.monotonic()
    found = one("hangs", seconds=1.5)
    assert time.monotonic() - began < 20
    assert found.outcome == "too slow"
    assert found.error.startswith("not done after")
    stat = Path(f"/proc/{found.result['child']}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_a_piece_that_a_signal_ends_is_named(one: Any) -> None:
    found = one("dies")
    assert found.outcome == "failed"
    assert found.error == "ended by signal 9"


def test_a_piece_can_be_started_anew_where_forking_does_not_do(tmp_path: Path) -> None:
    running = begin(Piece(name="facts", kind="facts", settings={}, seconds=120.0), tmp_path, "spawn")
    found = end(running, 120.0)
    assert found.outcome == "done", found.error
    assert found.result["torch"] == torch.__version__
    assert so_far(running) == found.result


def test_what_is_left_out_says_so() -> None:
    found = not_begun(Piece(name="x", kind="loss", settings={}, seconds=1.0), "not run", "3 s were left")
    assert json.dumps([found.outcome, found.error, found.result]) == '["not run", "3 s were left", null]'


NO_CUDA = """
import sys, torch
def started(*_):
    raise SystemExit("CUDA was started")
torch.cuda._lazy_init = torch._C._cuda_getDeviceCount = started
import tools.gpu.main
"""


def test_what_processes_are_forked_from_has_not_started_cuda() -> None:
    """It could not be used in them otherwise."""
    environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    done = subprocess.run([sys.executable, "-c", NO_CUDA], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
