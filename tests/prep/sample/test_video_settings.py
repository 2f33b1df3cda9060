"""Which frames of a video a build takes, by its settings, the source's and the record's: read off the frames."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lmms.configs.contract.manifest import Manifest, open_dataset
from lmms.configs.contract.pack import Pack
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.sources import SourceConfig
from lmms.prep.build import build_shards
from lmms.prep.video.process import stop
from lmms.train.data.shards import PackReader, read_sidecar
from tests.kit.folders import DEMO_MODEL, VIDEO_TEMPLATE
from tests.kit.media.videos import number_of, numbered, video


@pytest.fixture(scope="module", autouse=True)
def no_decoder_is_left() -> Iterator[None]:
    yield
    stop()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video of four seconds, 100 numbered frames, and some frames of its as pictures."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "a.mp4").write_bytes(video(100))
    for number in (3, 1, 2):
        Image.fromarray(numbered(number)).save(folder / f"{number}.png")
    return folder


def turns(*parts: Any) -> list[dict[str, Any]]:
    question = [*parts, {"type": "text", "text": "What?"}]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": "This."}]


def built(root: Path, folder: Path, records: list[dict[str, Any]], **settings: Any) -> tuple[Manifest, list[Pack]]:
    source, template = folder / "records.jsonl", folder / "template.jinja"
    template.write_text(VIDEO_TEMPLATE)
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = PrepConfig(
        sources=(SourceConfig(path=str(source), **settings.pop("source", {})),),
        model=str(DEMO_MODEL),
        out=str(folder / "shards"),
        media_root=str(root),
        chat_template=str(template),
        **{"seq_len": 16384, "workers": 0, "store": "none", "video_encoding": "png", "max_rejects": 1.0, **settings},
    )
    manifest = build_shards(config)
    dataset = open_dataset(folder / "shards")
    reader, sidecar = PackReader([dataset]), read_sidecar(dataset)
    return manifest, [reader.read(sidecar.place(number)) for number in range(len(sidecar))]


def frames_of(pack: Pack) -> list[int]:
    """The numbers of the frames of a pack, as their pixels say."""
    numbers = []
    for media, data in zip(pack.media, pack.media_data(), strict=True):
        assert media.row is not None
        for end, size in zip(np.cumsum(media.row.bytes).tolist(), media.row.bytes, strict=True):
            numbers.append(number_of(np.asarray(Image.open(io.BytesIO(data[end - size : end])).convert("RGB"))))
    return numbers


def evenly(count: int, first: int = 0, last: int = 99) -> list[int]:
    return [int(i) for i in np.linspace(first, last, count).round()]


@pytest.mark.parametrize(
    ("settings", "part", "expected"),
    [
        ({}, {}, evenly(8)),
        ({"video_fps": 1.0}, {}, evenly(4)),
        ({"video_nframes": 6}, {}, evenly(6)),
        ({"video_fps": 1.0, "source": {"video_fps": 3.0}}, {}, evenly(12)),
        ({"source": {"video_max_frames": 5}}, {}, evenly(5)),
        ({"video_nframes": 6}, {"fps": 1.5}, evenly(6)),
        ({"video_fps": 1.0}, {"nframes": 3}, evenly(3)),
        ({"video_max_frames": 4}, {"fps": 10, "max_frames": 7}, evenly(7)),
        ({}, {"video_start": 1.0, "video_end": 3.0, "nframes": 4}, evenly(4, 25, 75)),
        ({}, {"min_frames": 20}, evenly(20)),
    ],
)
def test_frames_are_those_that_the_record_the_source_or_the_build_asks_for(
    settings: dict[str, Any], part: dict[str, Any], expected: list[int], root: Path, tmp_path: Path
) -> None:
    record = {"messages": turns({"type": "video", "video": "a.mp4", **part})}
    _, (pack,) = built(root, tmp_path, [record], **settings)
    assert frames_of(pack) == expected
    seconds = [second for media in pack.media if media.row for second in media.row.seconds]
    assert seconds == pytest.approx([number / 25 for number in expected])


def test_a_video_is_named_in_every_way_that_a_picture_is(root: Path, tmp_path: Path) -> None:
    data = base64.b64encode((root / "a.mp4").read_bytes()).decode()
    bare = {"type": "video"}
    records = [
        {"messages": turns({"type": "video", "video": "a.mp4"})},
        {"messages": turns({"type": "video_url", "video_url": {"url": "a.mp4"}})},
        {"messages": turns({"type": "video_url", "video_url": f"data:video/mp4;base64,{data}"})},
        {"messages": turns(bare), "videos": ["a.mp4"]},
        {"messages": turns(bare), "video": "a.mp4"},
        {"messages": turns(bare), "videos": [{"bytes": data, "path": None}]},
    ]
    manifest, (pack,) = built(root, tmp_path, records)
    assert frames_of(pack) == evenly(8) * 6
    assert (manifest.counts["packed"], manifest.counts["videos"], manifest.counts["media"]) == (6, 6, 24)
    assert manifest.fingerprints["video_decoder"].startswith("av ")


def test_a_list_of_frames_is_taken_as_it_is(root: Path, tmp_path: Path) -> None:
    part = {"type": "video", "video": ["3.png", "1.png", "2.png"], "sample_fps": 4}
    _, (pack,) = built(root, tmp_path, [{"messages": turns(part)}], video_fps=1.0)
    assert frames_of(pack) == [3, 1, 2]
    assert [media.row.seconds for media in pack.media if media.row] == [(0.0, 0.25), (0.5,)]
    assert {media.row.step for media in pack.media if media.row} == {0.5}


def test_frames_are_stored_as_the_model_sees_them_or_as_they_were(root: Path, tmp_path: Path) -> None:
    records = [{"messages": turns({"type": "video", "video": "a.mp4", "nframes": 2, "max_pixels": 1024})}]
    for name, size in (("resized", (32, 16)), ("original", (64, 48))):
        (tmp_path / name).mkdir()
        _, (pack,) = built(root, tmp_path / name, records, video_frames=name)
        (media,) = pack.media
        assert (media.size, media.grid_thw) == (size, (1, 2, 4))


def test_jpeg_frames_are_smaller_than_png_frames(root: Path, tmp_path: Path) -> None:
    sizes = {}
    for encoding in ("png", "jpeg"):
        (tmp_path / encoding).mkdir()
        records = [{"messages": turns({"type": "video", "video": "a.mp4"})}]
        _, (pack,) = built(root, tmp_path / encoding, records, video_encoding=encoding, video_quality=80)
        assert frames_of(pack) == evenly(8)
        sizes[encoding] = {Image.open(io.BytesIO(data)).format for data in pack.media_data()}
    assert sizes == {"png": {"PNG"}, "jpeg": {"JPEG"}}


def test_a_video_that_no_pack_holds_is_told_how_to_become_smaller(root: Path, tmp_path: Path) -> None:
    records = [
        {"messages": turns({"type": "video", "video": "a.mp4"})},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    ]
    built(root, tmp_path, records, seq_len=64)
    (reject,) = open_rejects(tmp_path / "shards")
    assert reject["reason"] == "too_long"
    assert "smaller: video_max_pixels, fewer frames: video_fps or video_max_frames" in reject["message"]


def open_rejects(folder: Path) -> list[dict[str, Any]]:
    import polars as pl

    return pl.read_parquet(folder / "rejects.parquet").to_dicts()
