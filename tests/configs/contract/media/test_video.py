"""Which frames of a video are sampled, and their size: the rules of the video processors, on thousands of videos."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.models.qwen2_vl import video_processing_qwen2_vl as qwen2_vl
from transformers.models.qwen3_vl import video_processing_qwen3_vl as qwen3_vl
from transformers.video_utils import VideoMetadata

from lmms.configs.contract.media.geometry import Vision
from lmms.configs.contract.media.video import (
    VideoAsk,
    VideoRule,
    asked,
    clip_range,
    frame_size,
    row_time,
    rows_of,
    sampled_frames,
)

VISION = Vision(
    patch_size=14,
    merge_size=2,
    temporal_patch_size=2,
    min_pixels=3136,
    max_pixels=12845056,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
BY_FRAME = VideoRule(areas="frame", min_pixels=3136, max_pixels=602112, fps=2.0, min_frames=4, max_frames=768)
TOGETHER = VideoRule(areas="video", min_pixels=4096, max_pixels=25165824, fps=2.0, min_frames=4, max_frames=768)
LENGTHS, RATES = st.integers(2, 20_000), st.sampled_from([0.5, 1.0, 12.5, 23.976, 25.0, 29.97002997002997, 30.0, 60.0])


@given(frames=LENGTHS, fps=RATES, ask=st.sampled_from([0.5, 1.0, 2.0, 7.3]))
def test_frames_at_a_rate_are_those_of_the_processors(frames: int, fps: float, ask: float) -> None:
    metadata = VideoMetadata(total_num_frames=frames, fps=fps)
    expected = qwen2_vl.Qwen2VLVideoProcessor().sample_frames(metadata, fps=ask)
    assert sampled_frames(frames, fps, VideoAsk(fps=ask), BY_FRAME, 2) == expected.tolist()
    found = sampled_frames(frames, fps, VideoAsk(fps=ask), TOGETHER, 2)
    assert found == qwen3_vl.Qwen3VLVideoProcessor().sample_frames(metadata, fps=ask).tolist()


@given(frames=LENGTHS, count=st.integers(1, 800))
def test_a_number_of_frames_gives_those_of_the_processors(frames: int, count: int) -> None:
    assume(2 <= round(count / 2) * 2 <= frames and count <= frames)
    metadata = VideoMetadata(total_num_frames=frames, fps=25.0)
    expected = qwen2_vl.Qwen2VLVideoProcessor().sample_frames(metadata, num_frames=count)
    assert sampled_frames(frames, 25.0, VideoAsk(nframes=count), BY_FRAME, 2) == expected.tolist()
    found = sampled_frames(frames, 25.0, VideoAsk(nframes=count), TOGETHER, 2)
    assert found == qwen3_vl.Qwen3VLVideoProcessor().sample_frames(metadata, num_frames=count).tolist()


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), frames=st.integers(2, 768))
def test_frames_have_the_size_of_the_processors(height: int, width: int, frames: int) -> None:
    assume(max(height, width) <= 200 * min(height, width))
    expected = qwen2_vl.smart_resize(height, width, 28, BY_FRAME.min_pixels, BY_FRAME.max_pixels)
    assert frame_size(height, width, frames, VideoAsk(), BY_FRAME, VISION) == expected
    # Of a narrow frame the processor first makes a side of 28 pixels, and judges the shape by whole pixels.
    assume(max(height, width) <= 199 * min(height, width))
    together = qwen3_vl.smart_resize(frames, height, width, 2, 28, TOGETHER.min_pixels, TOGETHER.max_pixels)
    assert frame_size(height, width, frames, VideoAsk(), TOGETHER, VISION) == together


@pytest.mark.parametrize("rule", [BY_FRAME, TOGETHER])
def test_areas_that_are_asked_for_hold_for_each_frame_and_for_all_together(rule: VideoRule) -> None:
    frames = 64
    height, width = frame_size(720, 1280, frames, VideoAsk(max_pixels=100_000), rule, VISION)
    assert 80_000 < height * width <= 100_000
    height, width = frame_size(720, 1280, frames, VideoAsk(total_pixels=64 * 50_000), rule, VISION)
    assert 30_000 < height * width <= (50_000 if rule is TOGETHER else 100_000)
    height, width = frame_size(32, 32, frames, VideoAsk(min_pixels=50_000), rule, VISION)
    assert 50_000 <= height * width < 60_000
    with pytest.raises(ValueError, match="smallest area"):
        frame_size(720, 1280, frames, VideoAsk(min_pixels=9999, max_pixels=5000), rule, VISION)


@pytest.mark.parametrize(("rule", "kept"), [(BY_FRAME, 8), (TOGETHER, 9)])
def test_frames_have_a_least_and_a_largest_number(rule: VideoRule, kept: int) -> None:
    assert len(sampled_frames(1000, 30.0, VideoAsk(fps=2.0, max_frames=9), rule, 2)) == kept
    assert len(sampled_frames(1000, 500.0, VideoAsk(fps=2.0, min_frames=8), rule, 2)) == 8
    assert sampled_frames(1, 30.0, VideoAsk(), rule, 2) == [0, 0]
    with pytest.raises(ValueError, match="64 frames are asked for, the clip has 10"):
        sampled_frames(10, 30.0, VideoAsk(nframes=64), rule, 2)


def test_a_clip_begins_and_ends_within_its_times() -> None:
    assert clip_range(100, 10.0, VideoAsk()) == range(100)
    assert clip_range(100, 10.0, VideoAsk(start=1.01, end=2.09)) == range(11, 21)
    assert clip_range(100, 10.0, VideoAsk(end=99.0)) == range(100)
    assert clip_range(100, 10.0, VideoAsk(start=9.0)) == range(90, 100)
    for ask in (VideoAsk(start=10.0), VideoAsk(end=0.0), VideoAsk(start=50.0, end=60.0)):
        with pytest.raises(ValueError, match="there are no frames from"):
            clip_range(100, 10.0, ask)


def test_what_is_stated_first_holds_and_a_rate_takes_the_place_of_a_number() -> None:
    of_part, of_build = VideoAsk(fps=1.0, max_frames=8), VideoAsk(nframes=16, max_frames=4, min_frames=2)
    assert asked([of_part, of_build]) == VideoAsk(fps=1.0, max_frames=8, min_frames=2)
    assert asked([VideoAsk(), of_build]) == of_build


def test_rows_are_pairs_of_frames_in_the_middle_of_their_times() -> None:
    assert rows_of([0, 5, 9], 2) == [(0, 5), (9,)]
    assert math.isclose(row_time([0.5, 1.5]), 1.0)
    assert row_time([2.5]) == 2.5


@pytest.mark.parametrize("change", [{"fps": 0}, {"fps": math.inf}, {"min_pixels": 0}, {"max_frames": 2.5}])
def test_a_rule_without_sense_is_refused(change: dict[str, float]) -> None:
    values = {"areas": "frame", "min_pixels": 1, "max_pixels": 2, "fps": 2.0, "min_frames": 1, "max_frames": 2}
    with pytest.raises(ValueError, match="of videos is"):
        VideoRule(**{**values, **change})  # type: ignore[arg-type]
