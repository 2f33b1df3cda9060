"""What a build would make is what the build makes; a share of the rows is a small picture of all."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lmms.configs.contract.manifest import open_dataset
from lmms.configs.errors import BuildError, ConfigError
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.sources import SourceConfig
from lmms.prep.build import build_shards
from lmms.prep.outlook import expected_waiting, look_ahead
from lmms.prep.sample.frame_prices import CHOICES
from lmms.train.data.shards import PackReader, read_sidecar
from tests.kit.folders import VIDEO_TEMPLATE, tiny_model_folder
from tests.kit.media.videos import numbered, video
from tests.kit.records import write_records


def settings(folder: Path, **more: Any) -> PrepConfig:
    values = {"seq_len": 512, "max_rejects": 1.0, "workers": 0, "sources": (str(folder / "data"),), **more}
    return PrepConfig(model=str(tiny_model_folder(folder)), out=str(folder / "out"), **values)


@pytest.mark.parametrize("plan", ["balanced", "tight"])
def test_packs_rejects_and_bytes_are_those_of_the_build(tmp_path: Path, plan: str) -> None:
    write_records(tmp_path / "data")
    config = settings(tmp_path, plan=plan)
    outlook = look_ahead(config, [512])
    manifest = build_shards(config)
    (packing,) = (each for each in outlook.packings if each.plan == plan)
    assert packing.packs == manifest.counts["packs"]
    assert packing.fill == pytest.approx(manifest.fill)
    assert outlook.rejects == manifest.rejects
    assert (outlook.share, outlook.read) == (1.0, manifest.counts["read"])
    names = ("target_tokens", "media", "patches")
    assert [getattr(outlook, name) for name in names] == [manifest.counts[name] for name in names]
    assert int(outlook.lengths.sum()) == manifest.counts["tokens"]
    shards = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.mds"))
    assert outlook.bytes == pytest.approx(shards, rel=0.05)


def test_nothing_is_written(tmp_path: Path) -> None:
    write_records(tmp_path / "data", 60)
    config = settings(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    look_ahead(config, [256, 512])
    assert sorted(tmp_path.rglob("*")) == before


def test_samples_that_are_too_long_for_the_shorter_pack_are_counted(tmp_path: Path) -> None:
    write_records(tmp_path / "data")
    short, long = (look_ahead(settings(tmp_path), [96, 512]).packings[i] for i in (0, 2))
    assert (short.seq_len, long.seq_len, long.too_long) == (96, 512, 0)
    rejects = build_shards(settings(tmp_path, seq_len=96)).rejects
    assert short.too_long == rejects["too_long"]


def test_long_texts_are_cut_for_the_shorter_pack(tmp_path: Path) -> None:
    (tmp_path / "book.jsonl").write_text('{"text": "%s"}\n' % ("word " * 3000))
    config = settings(tmp_path, sources=(str(tmp_path / "book.jsonl"),))
    short, long = (look_ahead(config, [64, 1024]).packings[i] for i in (1, 3))
    assert short.too_long == long.too_long == 0
    assert short.packs == build_shards(replace(config, plan="tight", seq_len=64)).counts["packs"]


def test_a_share_of_the_rows_stands_for_all(tmp_path: Path) -> None:
    write_records(tmp_path / "data", 2000)
    whole, part = (look_ahead(settings(tmp_path), [512], share=share).packings[0] for share in (1.0, 0.25))
    assert part.packs == pytest.approx(whole.packs, rel=0.1)
    assert look_ahead(settings(tmp_path), [512], share=0.25).share == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("ranks", [1, 2, 8, 500])
def test_waiting_is_the_mean_of_what_drawn_packs_cost(ranks: int) -> None:
    draws = np.random.default_rng(0)
    costs = draws.gamma(4.0, size=300)
    drawn = draws.choice(costs, (4000, ranks)).max(axis=1).mean() / costs.mean() - 1
    assert expected_waiting(costs, ranks) == pytest.approx(drawn, abs=0.02)


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    write_records(tmp_path / "data", 60)
    with pytest.raises(ConfigError, match="share of rows to read is 0, expected more than 0"):
        look_ahead(settings(tmp_path), [512], share=0.0)
    with pytest.raises(BuildError, match=r"no record of the 61 that were read can be packed; rejected: too_long"):
        look_ahead(settings(tmp_path), [4])


def write_videos(folder: Path) -> dict[str, Any]:
    """Settings of a build of six videos, of which the last is too long, and a text, all twice."""
    (folder / "template.jinja").write_text(VIDEO_TEMPLATE)
    parts: list[dict[str, str]] = [{"type": "text", "text": "Hello"}]
    for number in range(6):
        (folder / f"{number}.mp4").write_bytes(video(1000 if number == 5 else 50, size=(320, 240)))
        parts.append({"type": "video", "video": f"{number}.mp4"})
    answer = {"role": "assistant", "content": "Bars."}
    records = [{"messages": [{"role": "user", "content": [part]}, answer]} for part in parts]
    (folder / "data").mkdir()
    (folder / "data" / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    paths = {"media_root": str(folder), "chat_template": str(folder / "template.jinja")}
    source = SourceConfig(path=str(folder / "data"), repeat=2)
    return {**paths, "sources": (source,), "video_total_pixels": 128 * 96 * 4}


def stored_frames(out: Path) -> int:
    dataset = open_dataset(out)
    sidecar, reader = read_sidecar(dataset), PackReader([dataset])
    packs = [reader.read(sidecar.place(number)) for number in range(len(sidecar))]
    return sum(media.bytes for pack in packs for media in pack.media if media.row)


@pytest.mark.parametrize("chosen", CHOICES[::3])
def test_each_choice_of_frames_is_priced_as_a_build_with_it_takes(tmp_path: Path, chosen: tuple[Any, Any]) -> None:
    more = {**write_videos(tmp_path), "video_frames": chosen[0], "video_encoding": chosen[1]}
    outlook = look_ahead(settings(tmp_path, **more), [512])
    assert (outlook.rejects, outlook.measured_videos) == ({"too_long": 1}, 4)
    assert [(c.video_frames, c.video_encoding) for c in outlook.frame_choices] == list(CHOICES)
    for choice in outlook.frame_choices:
        now = {"video_frames": choice.video_frames, "video_encoding": choice.video_encoding}
        out = tmp_path / f"{choice.video_frames}-{choice.video_encoding}"
        build_shards(replace(settings(tmp_path, **{**more, **now}), out=str(out)))
        shards = sum(file.stat().st_size for file in out.glob("*.mds"))
        assert choice.frames == pytest.approx(stored_frames(out), rel=0 if tuple(now.values()) == chosen else 0.1)
        assert choice.shards == pytest.approx(shards, rel=0.1)


def test_without_videos_no_choice_of_frames_is_priced(tmp_path: Path) -> None:
    write_records(tmp_path / "data", 60)
    assert look_ahead(settings(tmp_path), [512]).frame_choices == ()


@pytest.mark.parametrize("video_frames", ["original", "resized"])
def test_frames_that_are_files_are_priced_as_they_are(tmp_path: Path, video_frames: str) -> None:
    for number in range(1, 4):
        Image.fromarray(numbered(number, 320, 240)).save(tmp_path / f"{number}.jpg", quality=50)
    (tmp_path / "template.jinja").write_text(VIDEO_TEMPLATE)
    content = [{"type": "video", "video": ["1.jpg", "2.jpg", "3.jpg"]}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "Bars."}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    more = {"media_root": str(tmp_path), "chat_template": str(tmp_path / "template.jinja"), "video_max_pixels": 12288}
    config = settings(tmp_path, sources=(str(tmp_path / "data.jsonl"),), video_frames=video_frames, **more)
    choices = {(c.video_frames, c.video_encoding): c.frames for c in look_ahead(config, [512]).frame_choices}
    own = sum((tmp_path / f"{number}.jpg").stat().st_size for number in range(1, 4))
    assert choices["original", "jpeg"] == choices["original", "png"] == pytest.approx(own, abs=1)
    assert choices["resized", "png"] != own
