"""Rows of videos as patches: all frames of a row, the last repeated; a damaged frame is named by its time."""

from dataclasses import replace

import numpy as np
import pytest

from lmms.configs.errors import TrainError
from lmms.train.batch.batch import make_batch
from lmms.train.batch.frames import repeated, row_patches
from lmms.train.batch.images import BadMediaError, image_patches
from tests.kit.model.clips import Clip, clip_rows, noise_clip
from tests.kit.model.models import TINY_VISION, make_pack, picture, places, talk, tiny_recipe


def rows_of_clip(clip: Clip) -> list[np.ndarray]:
    made = []
    for media, data in clip_rows(clip, TINY_VISION):
        assert media.row is not None
        made.append(row_patches(data, media, media.row, TINY_VISION))
    return made


def stills_of_clip(clip: Clip) -> list[np.ndarray]:
    """The patches of each frame as a picture."""
    (first, _), *_ = clip_rows(clip, TINY_VISION)
    return [image_patches(frame, replace(first, kind="image", row=None), TINY_VISION) for frame in clip.frames]


def test_a_row_has_the_patches_of_its_frames_and_repeats_the_last() -> None:
    clip = noise_clip(1, 3, 24, 16)
    first, last = rows_of_clip(clip)
    frames = stills_of_clip(clip)
    by_frame = first.reshape(len(first), 3, 2, -1)
    assert np.array_equal(by_frame[:, :, 0].reshape(len(first), -1), frames[0])
    assert np.array_equal(by_frame[:, :, 1].reshape(len(first), -1), frames[1])
    assert np.array_equal(last, repeated(frames[2], 2))


def test_a_row_is_resized_to_its_grid() -> None:
    (media, data), *_ = clip_rows(noise_clip(1, 2, 48, 32), TINY_VISION)
    assert media.row is not None
    small = replace(media, grid_thw=(1, 4, 6))
    assert row_patches(data, small, media.row, TINY_VISION).shape == (24, 3 * 2 * 16)


def test_a_damaged_frame_is_named_by_its_time() -> None:
    (media, data), *_ = clip_rows(noise_clip(1, 2, 24, 16, step=3.0), TINY_VISION)
    assert media.row is not None
    second = media.row.bytes[0]
    damaged = data[:second] + b"\0" * 20 + data[second + 20 :]
    with pytest.raises(BadMediaError, match=r"the frame at 1\.5 s of a video: the image cannot be decoded"):
        row_patches(damaged, media, media.row, TINY_VISION)


def test_a_conversation_with_a_damaged_frame_stops_a_run_or_is_masked() -> None:
    clip = noise_clip(1, 2, 24, 16)
    broken = replace(clip, frames=(clip.frames[0], b"\0" * len(clip.frames[1])))
    pack = make_pack([talk(0, 8), talk(1, 8, [picture(1), broken]), talk(2, 8, [clip])])
    with pytest.raises(TrainError, match=r"segment 1: second\.jsonl row 0: the frame at 0\.5 s of a video"):
        make_batch([pack], tiny_recipe("qwen3_vl"), places(0))
    batch = make_batch([pack], tiny_recipe("qwen3_vl", "mask"), places(0))
    whole = make_batch([make_pack([talk(0, 8), talk(2, 8, [clip])])], tiny_recipe("qwen3_vl"), places(0))
    assert len(batch.masked) == 1
    assert batch.weight == whole.weight
    assert batch.vision is not None
    assert batch.vision.frames == 2


def test_a_batch_of_still_pictures_alone_has_one_frame_a_patch() -> None:
    batch = make_batch([make_pack([talk(1, 8, [picture(1)])])], tiny_recipe("qwen3_vl"), places(0))
    assert batch.vision is not None
    assert (batch.vision.frames, batch.vision.patches.shape[1]) == (1, 3 * 16)
