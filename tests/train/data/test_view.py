"""A conversation for people: its text, and what stands for its pictures and videos."""

import pytest

from lmms.train.data.view import pack_segments, segment_pieces
from tests.kit.model.clips import Clip, noise_clip
from tests.kit.model.models import make_pack, manifest_of, picture, talk
from tests.kit.model.sounds import TINY_AUDIO, Noise, noise_sound


def shown(image: bytes | Clip | Noise) -> list[str]:
    """What stands for the media of a conversation."""
    pack, manifest = make_pack([talk(1, 6, [image])]), manifest_of("qwen2_5_omni_thinker")
    (segment,) = pack_segments(pack, manifest)
    return [piece.text for piece in segment_pieces(pack, segment, str) if piece.kind == "media"]


def test_a_sound_is_told_by_its_length() -> None:
    (text,) = shown(sound := noise_sound(1, 24_000, TINY_AUDIO))
    assert text == f"[sound of 1.50 s, 37 tokens, {len(sound.data):,} bytes]"


def test_a_picture_is_told_by_its_size() -> None:
    (text,) = shown(data := picture(1, 24, 16))
    assert text == f"[image 24 x 16, 6 x 4 patches, 6 tokens, {len(data):,} bytes]"


@pytest.mark.parametrize("frames", [3, 4])
def test_rows_of_a_video_that_stand_end_to_end_are_told_as_one_video_with_its_times(frames: int) -> None:
    clip = noise_clip(1, frames, 16, 8)
    (text,) = shown(clip)
    times = f"{frames} frames from 0.0 to {(frames - 1) / 2:.1f} s, {sum(map(len, clip.frames)):,} bytes"
    assert text == f"[video 16 x 8, 2 rows of 4 x 2 patches, 4 tokens, {times}]"


def test_rows_between_times_are_told_each_by_its_frames() -> None:
    first, last = shown(noise_clip(1, 3, 16, 8, has_times=True))
    assert first.startswith("[video 16 x 8, 4 x 2 patches, 2 tokens, 2 frames from 0.0 to 0.5 s, ")
    assert last.startswith("[video 16 x 8, 4 x 2 patches, 2 tokens, 1 frame at 1.0 s, ")
