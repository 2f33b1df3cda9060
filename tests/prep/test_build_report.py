"""build-report.json: what a build read and took, outside of what is equal in equal builds."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.contract.manifest import open_dataset
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.prep.build_report import REPORT_NAME, Clock
from lmms.prep.progress import Progress, silent
from lmms.prep.video.decode import probe
from lmms.prep.video.facts import VideoLimits
from lmms.prep.video.process import stop
from tests.kit.folders import VIDEO_TEMPLATE, shard_files, tiny_model_folder
from tests.kit.media.videos import again, video
from tests.kit.records import write_records


def built(folder: Path, out: str, **more: Any) -> dict[str, Any]:
    """The report of a build of two sources, in the second of which 5 of 250 records are rejected."""
    if not (folder / "plain.jsonl").exists():
        talk = '{"messages": [{"role": "user", "content": "Say %d"}, {"role": "assistant", "content": "%d"}]}\n'
        (folder / "plain.jsonl").write_text("".join(talk % (number, number) for number in range(600)))
        write_records(folder / "data", 250)
    sources = (str(folder / "plain.jsonl"), str(folder / "data"))
    values = {"seq_len": 512, "max_rejects": 0.05, "workers": 0, **more}
    model = str(tiny_model_folder(folder))
    build_shards(PrepConfig(sources=sources, model=model, out=str(folder / out), **values))
    report: dict[str, Any] = json.loads((folder / out / REPORT_NAME).read_text())
    return report


def test_the_report_tells_of_each_source_what_became_of_its_records_and_what_that_took(tmp_path: Path) -> None:
    report = built(tmp_path, "out")
    manifest = open_dataset(tmp_path / "out").manifest
    assert report["counts"] == manifest.counts
    assert report["rejects"] == manifest.rejects
    plain, mixed = report["sources"]
    assert (plain["read"], plain["packed"], plain["rejects"], plain["work"]["chunks"]) == (600, 600, {}, 2)
    assert mixed["rejects"] == manifest.rejects
    assert all(source["work"]["records_s"] > 0 and source["work"]["samples_s"] > 0 for source in (plain, mixed))
    assert report["work"]["chunks"] == sum(source["work"]["chunks"] for source in report["sources"])
    assert set(report["seconds"]) == {"finding", "reading", "planning", "writing", "closing"}
    assert report["cpu_seconds"] > 0
    assert report["peak_bytes"] > 10**7
    assert report["versions"]["lmms"]


def test_equal_builds_are_equal_but_for_the_report_and_the_manifest_does_not_know_it(tmp_path: Path) -> None:
    first, second = built(tmp_path, "a"), built(tmp_path, "b", workers=2)
    assert shard_files(tmp_path / "a") == shard_files(tmp_path / "b")
    assert first != second
    assert REPORT_NAME not in (tmp_path / "a" / "manifest.json").read_text()
    (tmp_path / "a" / REPORT_NAME).unlink()
    assert open_dataset(tmp_path / "a").manifest == open_dataset(tmp_path / "b").manifest


def test_the_report_tells_how_texts_were_rendered(tmp_path: Path) -> None:
    by_outline, by_template = (built(tmp_path, f"{fast}", fast=fast)["work"] for fast in (True, False))
    assert by_outline["tokenizers"] == ["tokenizers, since the sources are small"]
    assert by_template["tokenizers"] == ["tokenizers, since fast is false"]
    assert by_template["by_outline"] == 0
    assert by_outline["by_outline"] + by_outline["by_template"] == by_template["by_template"] > 0


def test_the_report_tells_what_an_earlier_build_had_kept(tmp_path: Path) -> None:
    first, second = (built(tmp_path, out, store=str(tmp_path / "store"))["work"] for out in "ab")
    assert (first["kept"], second["kept"]) == (0, first["chunks"])
    assert (second["records_s"], second["tokenizers"]) == (0, [])


def test_a_stage_is_timed_from_its_first_word_to_that_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 13.0, 14.0, 24.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    clock = Clock(since=10.0)
    next(times)
    hear = clock.listening(silent)
    for stage in ("reading", "reading", "writing"):
        hear(Progress(stage, 0, 0, 0, 0, 0))
    clock.begin("end")
    assert clock.seconds == {"finding": 3.0, "reading": 1.0, "writing": 10.0}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cpu_time_of_the_process_that_decodes_is_counted(tmp_path: Path, workers: int) -> None:
    clip = tmp_path / "long.mp4"
    clip.write_bytes(again(video(10, codec="mpeg4", size=(1280, 720)), 60))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    probe(clip, "auto", VideoLimits())  # decodes all frames to count them
    stop()
    alone = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    template = tmp_path / "template.jinja"
    template.write_text(VIDEO_TEMPLATE)
    content = [{"type": "video", "video": "long.mp4", "nframes": 2}, {"type": "text", "text": "What is shown?"}]
    talk = [{"role": "user", "content": content}, {"role": "assistant", "content": "Bars."}]
    used = []
    for name, messages in (("text", [{"role": "user", "content": "Hello"}, talk[1]]), ("video", talk)):
        source = tmp_path / f"{name}.jsonl"
        source.write_text(json.dumps({"messages": messages}) + "\n")
        out, model = tmp_path / f"out-{name}", str(tiny_model_folder(tmp_path))
        settings: dict[str, Any] = {
            "video_min_pixels": 3136,
            "video_max_pixels": 4096,
            "seq_len": 512,
            "chat_template": str(template),
        }
        build_shards(PrepConfig(sources=(str(source),), model=model, out=str(out), workers=workers, **settings))
        used.append(json.loads((out / REPORT_NAME).read_text())["cpu_seconds"])
    assert alone > 0.2
    assert used[1] - used[0] > 0.7 * alone
