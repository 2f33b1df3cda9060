"""A profile holds the steps it was told to and nothing else of a run, which it does not change."""

import gc
import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import profile

import lmms.train.loop
from lmms.configs.errors import ConfigError, TrainError
from lmms.configs.load import to_yaml
from lmms.configs.settings.profile import ProfileConfig
from lmms.train.checkpoint.read import checkpoint_name
from lmms.train.parallel.world import World
from lmms.train.run import train
from lmms.train.step import take_step
from lmms.train.watch.metrics import METRICS_NAME, StepLog
from lmms.train.watch.profile import Profile, check_profile, profiling, window_of
from lmms.train.watch.watch import unwatched
from tests.kit.model.models import tiny_model
from tests.kit.runs import read_metrics, read_tensors, run_config, silent, train_on_ranks, write_run

_THEIRS = ("FSDP::", "Optimizer.", "ProfilerStep", "gloo:")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return write_run(tmp_path, "qwen3_vl") | {"data.global_packs": 2}


def spans(folder: Path) -> list[dict[str, Any]]:
    """The events of a trace that take time."""
    events: list[dict[str, Any]] = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"]
    return [event for event in events if event.get("ph") == "X"]


def ranges(folder: Path) -> list[dict[str, Any]]:
    """Ours of its ranges, by their beginning."""
    ours = [e for e in spans(folder) if e["cat"] == "user_annotation" and not e["name"].startswith(_THEIRS)]
    return sorted(ours, key=lambda event: (event["ts"], -event["dur"]))


def inside(outer: dict[str, Any], events: list[dict[str, Any]]) -> list[str]:
    """Names of those within another's time."""
    end = outer["ts"] + outer["dur"]
    return [event["name"] for event in events if outer["ts"] <= event["ts"] and event["ts"] + event["dur"] <= end]


@pytest.fixture(autouse=True)
def earlier() -> None:
    """What other tests of this process left to Python's collector is gone before a test counts."""
    gc.collect()
    _EARLIER[:] = [number_of_profilers()]


_EARLIER = [0]


def number_of_profilers() -> int:
    return sum(type(entry) is profile for entry in gc.get_objects())


def live_profilers() -> int:
    """Profilers that this test has made."""
    return number_of_profilers() - _EARLIER[0]


def logged(output: str) -> list[tuple[int, bool]]:
    lines = (Path(output) / METRICS_NAME).read_text().splitlines()
    return [(json.loads(line)["step"], json.loads(line)["profiled"]) for line in lines]


def test_the_window_is_recorded_with_named_ranges_and_the_rest_of_the_run_without_a_profiler(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    plain = run_config(settings, output=str(tmp_path / "plain"), max_steps=6)
    train(plain, silent)
    config = run_config(settings, max_steps=6, profile__start=3, profile__steps=2)
    said, alive = list[str](), dict[int, tuple[bool, bool]]()

    def report(event: StepLog | str) -> None:
        if isinstance(event, str):
            said.append(event)
        else:
            alive[event.step] = (torch.autograd._profiler_enabled(), live_profilers() > 0)

    before = live_profilers()
    assert before == 0
    train(config, report)

    assert alive == {
        **dict.fromkeys((1, 5, 6), (False, False)),
        2: (False, True),
        **dict.fromkeys((3, 4), (True, True)),
    }
    assert logged(config.output) == [(step, step in (2, 3, 4)) for step in range(1, 7)]
    for line, other in zip(read_metrics(config.output), read_metrics(plain.output), strict=True):
        assert {**line, "profiled": False} == other
    ends = [read_tensors(Path(one.output) / checkpoint_name(6)) for one in (config, plain)]
    assert all(torch.equal(ends[0][name], tensor) for name, tensor in ends[1].items())

    folder = Path(config.output) / "profile" / "steps-3-4-rank-0"
    assert sorted(path.name for path in folder.parent.rglob("*")) == ["costs.txt", folder.name, "trace.json.gz"]
    found = ranges(folder)
    steps = [event for event in found if event["name"].startswith("step ")]
    assert [event["name"] for event in steps] == ["step 3", "step 4"]
    seen = set[str]()
    for step in steps:
        names = inside(step, found)[1:]
        assert [name for name in names if name.startswith("pass")] == ["pass 1", "pass 2"]
        assert names[-4:] == ["norms", "clip", "update", "after"]
        seen |= set(names)
    assert {"data", "forward", "vision", "merge", "llm", "loss", "backward"} <= seen
    for forward in (event for event in found if event["name"] == "forward"):
        parts = inside(forward, found)[1:]
        assert parts in (["vision", "merge", "llm", "loss"], ["llm", "loss"])
    assert any(event["name"] == "aten::addmm" for event in spans(folder))

    at = said.index(f"profile: {folder}; of the time of steps 3 to 4:")
    assert said[at + 1] in (folder / "costs.txt").read_text()
    assert "profile: steps 3 to 4 of rank 0 into profile/ of the output" in said


def test_the_window_is_counted_from_where_the_process_goes_on(settings: dict[str, Any]) -> None:
    train(run_config(settings, max_steps=3), silent)
    config = run_config(settings, max_steps=6, profile__start=2, profile__steps=1)
    train(config, silent)
    assert [path.name for path in (Path(config.output) / "profile").iterdir()] == ["steps-5-5-rank-0"]
    assert [step for step, profiled in logged(config.output) if profiled] == [4, 5]


def test_stacks_are_folded_for_a_flame_graph(tmp_path: Path) -> None:
    settings = write_run(tmp_path, "qwen3", packs=3) | {"data.global_packs": 1}
    config = run_config(settings, max_steps=2, profile__start=2, profile__steps=1, profile__stacks=True)
    train(config, silent)
    (file,) = Path(config.output).rglob("*.stacks.txt")
    assert file.name == "cpu.stacks.txt"
    lines = [line.rsplit(" ", 1) for line in file.read_text().splitlines()]
    assert all(int(us) > 0 for _, us in lines)
    assert any("take_step;pass 1;forward;" in path and path.endswith(";aten::mm") for path, _ in lines)
    assert len({path for path, _ in lines}) == len(lines)


def test_each_rank_that_is_named_writes_its_own(settings: dict[str, Any]) -> None:
    config = run_config(settings, max_steps=3, profile__start=2, profile__steps=1, profile__ranks=[1])
    train_on_ranks([config], 2)
    (folder,) = (Path(config.output) / "profile").iterdir()
    assert folder.name == "steps-2-2-rank-1"
    assert any(event["name"] == "step 2" for event in ranges(folder))
    # The others wait for it, so that all are slower.
    assert [step for step, profiled in logged(config.output) if profiled] == [1, 2]


def test_a_window_that_is_left_before_its_end_leaves_nothing(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(learner: Any, plan: Any, *rest: Any) -> Any:
        if plan.step == 3:
            raise TrainError("stop here")
        return take_step(learner, plan, *rest)

    monkeypatch.setattr(lmms.train.loop, "take_step", step)
    config = run_config(settings, max_steps=5, profile__start=2)
    with pytest.raises(TrainError, match="stop here"):
        train(config, silent)
    assert not (Path(config.output) / "profile").exists()
    assert not torch.autograd._profiler_enabled()
    gc.collect()
    assert live_profilers() == 0


@pytest.mark.parametrize("written", ['{"traceEvents": [{"', None])
def test_a_trace_that_was_cut_off_is_an_alarm_and_nothing_of_it_stays(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, written: str | None
) -> None:
    """Of some versions a full disk leaves a part of the file, of others one with another name."""

    def export(self: profile, path: str) -> None:
        Path(path if written else f"{path}.tmp").write_text(written or "")

    monkeypatch.setattr(profile, "export_chrome_trace", export)
    config = run_config(settings, max_steps=3, profile__start=2, profile__steps=1)
    said: list[StepLog | str] = []
    train(config, said.append)
    (alarm,) = (event for event in said if isinstance(event, str) and event.startswith("ALARM"))
    assert "profile/steps-2-2-rank-0 cannot be written (trace.json was not written to its end: " in alarm
    assert "is the disk full?); nothing of it is kept, the training goes on" in alarm
    assert list((Path(config.output) / "profile").iterdir()) == []
    assert [step for step, _ in logged(config.output)] == [1, 2, 3]
    gc.collect()
    assert live_profilers() == 0


def test_a_folder_that_cannot_be_written_is_an_alarm(settings: dict[str, Any]) -> None:
    config = run_config(settings, max_steps=3, profile__start=2, profile__steps=1)
    Path(config.output).mkdir()
    (Path(config.output) / "profile").write_text("")
    said: list[StepLog | str] = []
    train(config, said.append)
    (alarm,) = (event for event in said if isinstance(event, str) and event.startswith("ALARM"))
    assert "profile/steps-2-2-rank-0 cannot be written (Not a directory); nothing of it is kept" in alarm
    assert len(logged(config.output)) == 3


def test_a_window_that_sigterm_ends_says_that_nothing_of_it_is_kept(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(learner: Any, plan: Any, *rest: Any) -> Any:
        if plan.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(learner, plan, *rest)

    monkeypatch.setattr(lmms.train.loop, "take_step", step)
    said: list[StepLog | str] = []
    assert not train(run_config(settings, max_steps=5, profile__start=2), said.append)
    assert "profile: its window was left before its end, nothing of it is kept" in said
    assert not (Path(settings["output"]) / "profile").exists()


def test_the_profiler_says_nothing_across_the_view(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(to_yaml(run_config(settings, max_steps=2, profile__start=2, profile__steps=1)))
    command = [sys.executable, "-m", "lmms.cli", "train", "--config", tmp_path / "run.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"profile.start": 2, "profile.memory": True}, r"profile\.memory is true, but the device is cpu"),
        ({"profile.oom_stacks": True}, r"profile\.oom_stacks is true, but the device is cpu"),
        ({"profile.start": 2, "profile.ranks": [0, 1]}, r"profile\.ranks is \[0, 1\], expected ranks from 0 to 0"),
        ({"profile.start": 3}, r"profile\.start is 3 and profile\.steps 3, but the run ends with step 3"),
    ],
)
def test_what_cannot_be_profiled_is_an_error_before_the_first_step(
    settings: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        train(run_config(settings | changes), silent)
    assert not Path(settings["output"]).joinpath(METRICS_NAME).exists()


def test_a_resumed_run_that_ends_before_its_window_says_so_and_ends(settings: dict[str, Any]) -> None:
    train(run_config(settings, max_steps=2), silent)
    said: list[StepLog | str] = []
    train(run_config(settings, max_steps=4, profile__start=2, profile__steps=2), said.append)
    assert "profile: nothing is profiled, since the run ends before the window" in said
    assert not any(profiled for _, profiled in logged(settings["output"]))


def test_a_window_fits_up_to_the_last_step() -> None:
    config = ProfileConfig(start=2, steps=3)
    assert window_of(config, 10, 14) == range(12, 15)
    assert window_of(config, 10, 13) == range(0)
    assert window_of(ProfileConfig(), 10, 100) == range(0)


@pytest.mark.parametrize("oom_stacks", [False, True])
def test_allocations_are_recorded_in_the_window_or_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, oom_stacks: bool
) -> None:
    """On a GPU; here its functions are replaced by ones that note their calls."""
    calls: list[str] = []
    memory = torch.cuda.memory
    monkeypatch.setattr(memory, "_record_memory_history", lambda how="on", **_: calls.append(how or "off"))
    monkeypatch.setattr(
        memory, "_dump_snapshot", lambda path: calls.append("dump") or Path(path).write_bytes(b"blocks")
    )
    config = ProfileConfig(start=3, steps=1, memory=True, oom_stacks=oom_stacks)
    world = World(0, 1, torch.device("cpu"), mesh=None)  # type: ignore[arg-type]
    arguments = (tmp_path, world, tiny_model("qwen3"), window_of(config, 0, 9), unwatched())
    with profiling(config, *arguments) as found:
        assert isinstance(found, Profile)
        for step in range(1, 6):
            with found.step(step):
                calls.append(str(step))
    if oom_stacks:
        assert calls == ["on", "1", "2", "3", "dump", "4", "5"]
    else:
        assert calls == ["1", "on", "2", "3", "dump", "off", "4", "5"]
    assert (tmp_path / "profile" / "steps-3-3-rank-0" / "memory.pickle").read_bytes() == b"blocks"


def test_a_gpu_can_record_its_memory() -> None:
    check_profile(ProfileConfig(start=2, memory=True, oom_stacks=True), "cuda", 1, 0, 9)
