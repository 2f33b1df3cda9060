"""Real videos: ids, grids, pixels and positions of a build are those of the Hugging Face processors and models."""

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from lmms.configs.contract.pack import Media, Pack
from lmms.prep.video.decode import probe
from lmms.prep.video.facts import VideoFacts, VideoLimits
from lmms.prep.video.process import stop
from lmms.train.batch.frames import row_patches
from lmms.train.families import family_of
from tests.kit.media.av import made_of, records_of

FAMILIES = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")
LARGEST = 1_000_000 if os.environ.get("LMMS_ALL_VIDEOS") else 250_000
"""Bytes of the videos that are compared; LMMS_ALL_VIDEOS=1 takes all."""


@pytest.fixture(scope="module", autouse=True)
def no_decoder_is_left() -> Iterator[None]:
    yield
    stop()


@pytest.fixture(scope="module")
def av(shared: Path) -> Path:
    return shared / "data" / "av"


def video_records(av: Path) -> list[dict[str, Any]]:
    """The records of videos without sound, in parts that name their file, and without a clip or areas of their own."""
    records = records_of(av / "records.jsonl.zst")
    silent = [record for record in records if "audio" not in json.dumps(record["messages"]) and "audios" not in record]
    return [record for record in silent if (parts := videos_of(record)) and all(is_compared(p, av) for p in parts)]


def videos_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    contents = [message["content"] for message in record["messages"] if isinstance(message["content"], list)]
    return [part for content in contents for part in content if part["type"].startswith("video")]


def file_of(part: dict[str, Any]) -> Any:
    return part["video_url"]["url"] if "video_url" in part else part.get("video")


def is_compared(part: dict[str, Any], av: Path) -> bool:
    file = file_of(part)
    if not part.keys() <= {"type", "video", "video_url", "fps", "nframes", "sample_fps"} or file is None:
        return False
    return isinstance(file, list) or (av / file).stat().st_size <= LARGEST


@cache
def all_frames(file: Path) -> tuple[np.ndarray[Any, Any], VideoFacts]:
    """Every frame of a video, upright, by a decoder that this test drives."""
    import av as pyav

    with pyav.open(str(file)) as container:
        turns = 0
        frames = []
        for frame in container.decode(video=0):
            turns = round(frame.rotation / 90) % 4
            frames.append(np.rot90(frame.to_ndarray(format="rgb24"), turns))
    return np.stack(frames), probe(file, "auto", VideoLimits())


def official(record: dict[str, Any], av: Path, processor: Any) -> Any:
    """What the processor makes of a record."""
    messages = [
        {"role": m["role"], "content": [hf_part(part) for part in parts_of(m["content"])]} for m in record["messages"]
    ]
    text = processor.apply_chat_template(messages, tokenize=False)
    videos, metadata, sampling = [], [], {}
    for part in videos_of(record):
        file = file_of(part)
        if isinstance(file, list):
            frames = np.stack([np.asarray(Image.open(av / name).convert("RGB")) for name in file])
            rate = part["sample_fps"]
            metadata.append(VideoMetadata(len(file), fps=rate, frames_indices=list(range(len(file)))))
            sampling = {"do_sample_frames": False}
        else:
            frames, facts = all_frames(av / file)
            metadata.append(VideoMetadata(facts.frames, fps=facts.fps, duration=facts.seconds))
            asked = {"num_frames": part["nframes"]} if "nframes" in part else {"fps": part.get("fps", 2.0)}
            sampling = {"do_sample_frames": True, **asked}
        videos.append(torch.tensor(frames).permute(0, 3, 1, 2))
    return processor(text=[text], videos=videos, video_metadata=metadata, return_tensors="pt", **sampling)


def parts_of(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def hf_part(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "video"} if part["type"].startswith("video") else part


def grids_of(media: list[Media]) -> list[list[int]]:
    """The grid of each video, of those of its rows."""
    grids: list[list[int]] = []
    for m in media:
        assert m.row is not None
        if m.row.number == 0:
            grids.append([m.row.rows, *m.grid_thw[1:]])
    return grids


@pytest.mark.parametrize(
    ("name", "video_frames"), [*((name, "resized") for name in FAMILIES), ("qwen2.5-vl", "original")]
)
def test_real_videos_have_the_ids_grids_pixels_and_positions_of_the_processor_and_the_model(
    name: str, video_frames: str, av: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    records = video_records(av)
    assert len(records) >= 8
    folder, samples = made_of(records, av, model_folders[name], tmp_path, video_frames=video_frames)
    config, processor = AutoConfig.from_pretrained(folder.path), AutoProcessor.from_pretrained(folder.path)
    with torch.device("meta"):
        hf = AutoModelForImageTextToText.from_config(config)
    family = family_of(folder.family)
    assert family.images is not None
    assert folder.vision is not None
    tower = family.images.tower(config)
    mean, std = (torch.tensor(values).view(3, 1) for values in (folder.vision.image_mean, folder.vision.image_std))
    for pack, record in zip(samples, records, strict=True):
        assert isinstance(pack, Pack), pack
        expected = official(record, av, processor)
        assert pack.input_ids.tolist() == expected["input_ids"][0].tolist()
        assert grids_of(list(pack.media)) == expected["video_grid_thw"].tolist()
        pixels = expected["pixel_values_videos"].view(len(expected["pixel_values_videos"]), 3, -1)
        bytes_of_processor = ((pixels * std + mean) * 255).round().to(torch.uint8).flatten(1)
        ours = [row_patches(d, m, m.row, folder.vision) for m, d in zip(pack.media, pack.media_data(), strict=True)]
        assert np.array_equal(np.concatenate(ours), bytes_of_processor.numpy())
        seconds = {"second_per_grid_ts": expected["second_per_grid_ts"]} if "second_per_grid_ts" in expected else {}
        positions, _ = hf.model.get_rope_index(
            expected["input_ids"], expected["mm_token_type_ids"], None, expected["video_grid_thw"], **seconds
        )
        cu_seqlens = pack.cu_seqlens.astype(np.int64)
        found = family.positions(cu_seqlens, pack.media, tower)
        assert np.array_equal(found, positions.numpy())
