"""Sounds of known samples: what is read back is what was written, for every container; and where a clip begins."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soxr

from lmms.configs.contract.media.sounds import samples_of
from lmms.prep.audio.decode import encoded_sound, probe_sound
from lmms.prep.audio.facts import SoundFormat
from lmms.prep.reject import Reject
from lmms.prep.video import process
from lmms.prep.video.facts import VideoLimits
from tests.kit.media.sounds import RATE, coded, pcm, tone
from tests.kit.media.videos import video

LIMITS = VideoLimits()
FORM = SoundFormat()
STEP = 2.0**-15
LENGTH = 8000
ID3 = b"ID3\x04\0\0\0\0\x01\x00" + bytes(128)


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    yield
    process.stop()


@pytest.mark.parametrize(
    ("container", "subtype", "error"),
    [
        ("WAV", "PCM_U8", 2.0**-7),
        ("WAV", "PCM_16", STEP),
        ("WAV", "PCM_24", STEP),
        ("WAV", "PCM_32", STEP),
        ("WAV", "FLOAT", STEP / 2),
        ("WAV", "DOUBLE", STEP / 2),
        ("WAV", "ULAW", 0.016),
        ("WAV", "ALAW", 0.016),
        ("WAVEX", "PCM_24", STEP),
        ("RF64", "PCM_16", STEP),
        ("AIFF", "PCM_24", STEP),
        ("FLAC", "PCM_S8", 2.0**-7),
        ("FLAC", "PCM_16", STEP),
        ("FLAC", "PCM_24", STEP),
    ],
)
def test_samples_without_loss_are_read_back(container: str, subtype: str, error: float) -> None:
    data, number = encoded_sound(pcm(tone(LENGTH), subtype, container), RATE, FORM, LIMITS)
    assert number == LENGTH
    assert np.abs(samples_of(data) - tone(LENGTH)[:, 0]).max() <= error


@pytest.mark.parametrize(
    ("container", "codec", "name"),
    [
        ("mp3", "libmp3lame", "mp3"),
        ("ogg", "libopus", "ogg"),
        ("ipod", "aac", "mp4"),
        ("webm", "libopus", "matroska"),
        ("matroska", "pcm_s16le", "matroska"),
        ("adts", "aac", "aac"),
        ("mov", "alac", "mp4"),
        ("mpegts", "aac", "mpegts"),
        ("avi", "pcm_s16le", "avi"),
    ],
)
def test_every_container_is_known_by_its_bytes(container: str, codec: str, name: str) -> None:
    facts = probe_sound(coded(tone(LENGTH, channels=2), container, codec), LIMITS)
    assert (facts.container, facts.channels) == (name, 2)
    assert 0.5 <= facts.seconds < 0.65


@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("mp3", "libmp3lame"), ("adts", "aac")])
def test_tags_before_a_sound_change_nothing(container: str, codec: str) -> None:
    data = coded(tone(LENGTH), container, codec)
    assert probe_sound(ID3 + ID3 + data, LIMITS) == probe_sound(data, LIMITS)
    assert encoded_sound(ID3 + data, RATE, FORM, LIMITS) == encoded_sound(data, RATE, FORM, LIMITS)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("length", [1, 100, 200_001])
def test_another_rate_is_that_of_the_resampler_on_all_samples_at_once(rate: int, length: int) -> None:
    samples = tone(length, rate=rate)
    data, number = encoded_sound(pcm(samples, "FLOAT", rate=rate), RATE, SoundFormat(24), LIMITS)
    whole = soxr.resample(samples[:, 0], rate, RATE, quality="HQ")
    assert number == int(np.ceil(length * (float(RATE) / rate)))
    assert number - len(whole) in (0, 1)
    assert np.abs(samples_of(data)[: len(whole)] - whole).max(initial=0) <= 2.0**-24
    assert not samples_of(data)[len(whole) :].any()


def test_channels_become_their_mean() -> None:
    data, _ = encoded_sound(pcm(tone(LENGTH, channels=6), "FLOAT"), RATE, FORM, LIMITS)
    assert np.abs(samples_of(data) - tone(LENGTH, channels=6).mean(1)).max() <= STEP / 2 + 1e-7


def test_24_bits_are_nearer_than_16_and_samples_of_so_many_bits_keep_all_of_them() -> None:
    exact = np.round(tone(LENGTH) * 2**23).astype(np.int32)
    source = pcm(exact << 8, "PCM_24")
    kept = samples_of(encoded_sound(source, RATE, SoundFormat(24), LIMITS)[0])
    rounded = samples_of(encoded_sound(source, RATE, FORM, LIMITS)[0])
    assert np.array_equal(kept * 2**23, exact[:, 0])
    assert 2.0**-17 < np.abs(rounded - kept).max() <= STEP / 2


def test_samples_of_16_bits_are_kept_and_give_the_same_bytes_from_every_file() -> None:
    exact = np.round(tone(LENGTH) * 2**15).astype(np.int16)
    first, _ = encoded_sound(pcm(exact, "PCM_16"), RATE, FORM, LIMITS)
    again, _ = encoded_sound(pcm(exact, "PCM_16", "FLAC"), RATE, FORM, LIMITS)
    assert first == again == encoded_sound(first, RATE, FORM, LIMITS)[0]
    assert np.array_equal(samples_of(first) * 2**15, exact[:, 0])


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [(0.1, None, 1600, LENGTH), (None, 0.25, 0, 4000), (0.1, 0.3, 1600, 4799), (0.4, 9.0, 6400, LENGTH)],
)
def test_a_clip_has_the_samples_between_its_times(
    start: float | None, end: float | None, first: int, last: int
) -> None:
    """Rounded down as librosa.load rounds: 0.3 - 0.1 s are 3199 samples."""
    source = pcm(tone(LENGTH), "PCM_16")
    whole = samples_of(encoded_sound(source, RATE, FORM, LIMITS)[0])
    part, number = encoded_sound(source, RATE, FORM, LIMITS, start, end)
    assert number == last - first
    assert np.array_equal(samples_of(part), whole[first:last])


@pytest.mark.parametrize(("start", "end"), [(0.5, None), (0.2, 0.2), (0.3, 0.1)])
def test_a_clip_without_samples_is_a_reject(start: float, end: float | None) -> None:
    with pytest.raises(Reject, match="bad_range"):
        encoded_sound(pcm(tone(LENGTH), "PCM_16"), RATE, FORM, LIMITS, start, end)


def test_a_time_before_the_start_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="times count from 0"):
        encoded_sound(b"", RATE, FORM, LIMITS, -1.0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"#EXTM3U\nhttp://127.0.0.1/a.mp3\n", "not_a_sound"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "not_a_sound"),
        (b"\xff\xfe" + "a text in UTF-16".encode("utf-16-le") * 50, "not_a_sound"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(100), "unsupported_format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not_a_sound"),
        (ID3 + b"no sound behind a tag", "not_a_sound"),
        (pcm(np.array([[0.0], [np.inf]], np.float32), "FLOAT"), "non_finite_samples"),
        (pcm(np.array([[1e300]]), "DOUBLE"), "non_finite_samples"),
        (pcm(np.zeros((0, 1), np.float32), "PCM_16"), "empty_audio"),
    ],
    ids=["nothing", "playlist", "concat", "utf-16", "wma", "png", "tag", "infinite", "too large", "no samples"],
)
def test_what_is_no_sound_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Reject, match=reason):
        probe_sound(data, LIMITS)


@pytest.mark.parametrize(("channels", "rate"), [(1, RATE * 2), (2, RATE)], ids=["resampled", "mean"])
def test_samples_too_large_to_calculate_with_are_a_reject_and_not_silence(channels: int, rate: int) -> None:
    data = pcm(np.full((LENGTH, channels), 3e38, np.float32), "FLOAT")
    with pytest.raises(Reject, match="too large") as error:
        encoded_sound(data, rate, FORM, LIMITS)
    assert error.value.reason == "non_finite_samples"


def test_a_video_without_sound_is_a_reject() -> None:
    with pytest.raises(Reject, match="no_audio_stream"):
        probe_sound(video(3), LIMITS)


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp3", "libmp3lame"), ("ogg", "libopus"), ("ipod", "aac"), ("webm", "libopus"), ("flac", "flac")],
)
def test_a_file_that_is_cut_off_is_a_reject_wherever_it_is_cut(container: str, codec: str) -> None:
    data = coded(tone(LENGTH), container, codec)
    for cut in range(1, len(data), len(data) // 40):
        with pytest.raises(Reject, match=r"decode_error|not_a_sound|empty_audio"):
            probe_sound(data[:cut], LIMITS)


@pytest.mark.parametrize("container", ["WAV", "RF64"])
def test_a_wav_that_is_cut_off_is_a_reject(container: str) -> None:
    data = pcm(tone(LENGTH), "PCM_16", container)
    for cut in (len(data) - 1, len(data) // 2, 60):
        with pytest.raises(Reject, match="decode_error"):
            probe_sound(data[:cut], LIMITS)


def test_a_sound_that_takes_too_long_is_a_reject_of_its_own_words(tmp_path: Path) -> None:
    file = tmp_path / "long.mp3"
    file.write_bytes(coded(np.zeros((RATE * 60, 1), np.float32), "adts", "aac") * 40)
    with pytest.raises(Reject, match=r"the sound was not decoded within 0\.02 s"):
        probe_sound(file, VideoLimits(timeout_s=0.02))
    assert probe_sound(pcm(tone(LENGTH), "PCM_16"), LIMITS).samples == LENGTH


def test_one_process_answers_for_videos_and_sounds_and_its_memory_does_not_grow_with_a_sound(tmp_path: Path) -> None:
    file = tmp_path / "hour.flac"
    file.write_bytes(pcm(np.zeros((RATE * 3600, 1), np.float32), "PCM_16", "FLAC"))  # 220 MiB as 32-bit floats
    data, number = encoded_sound(file, 8000, FORM, VideoLimits(memory=150 * 2**20))
    assert number == 8000 * 3600
    assert len(data) < 2**20
