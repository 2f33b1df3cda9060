"""The process that decodes: it ends when time or memory is over and by a crash, and the next file is read."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest

from lmms.configs.errors import BuildError
from lmms.prep.reject import Reject
from lmms.prep.video import process
from lmms.prep.video.decode import encoded_frames, probe
from lmms.prep.video.facts import FrameFormat, VideoFacts, VideoLimits
from tests.kit.media.videos import again, video

LIMITS = VideoLimits()


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    yield
    process.stop()


@pytest.fixture(scope="module")
def slow() -> bytes:
    """300 frames of 720p, which are decoded to be counted."""
    return again(video(10, codec="mpeg4", size=(1280, 720)), 30)


def child() -> int:
    (running,) = process._children
    return running.process.pid


def peak_memory(pid: int) -> int:
    """Most bytes of main memory that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_process_decodes_all_files() -> None:
    probe(video(3), "auto", LIMITS)
    first = child()
    with pytest.raises(Reject, match="not_a_video"):
        probe(b"text", "auto", LIMITS)
    encoded_frames(video(3), [2], None, FrameFormat(), "auto", LIMITS)
    assert child() == first


def test_a_video_that_takes_too_long_is_a_reject_and_the_next_is_read(slow: bytes) -> None:
    probe(video(3), "auto", LIMITS)
    first = child()
    start = time.monotonic()
    with pytest.raises(Reject, match="media_timeout"):
        probe(slow, "auto", VideoLimits(timeout_s=0.05))
    assert time.monotonic() - start < 5
    assert probe(video(3), "auto", LIMITS).frames == 3
    assert not is_alive(first)


def test_a_video_that_takes_too_much_memory_is_a_reject_and_the_next_is_read() -> None:
    data = video(1, codec="mjpeg", pixels="yuvj420p", size=(3840, 2160))
    with pytest.raises(Reject, match="media_memory"):
        encoded_frames(data, [0], None, FrameFormat(), "auto", VideoLimits(memory=120 * 2**20))
    assert len(encoded_frames(data, [0], None, FrameFormat(), "auto", LIMITS)) == 1


def test_a_crash_of_the_library_is_a_reject_and_the_next_is_read(slow: bytes) -> None:
    probe(video(3), "auto", LIMITS)
    timer = Timer(0.1, os.kill, (child(), signal.SIGSEGV))
    timer.start()
    with pytest.raises(Reject, match="media_crash") as caught:
        encoded_frames(slow, list(range(300)), None, FrameFormat("png"), "auto", LIMITS)
    timer.join()
    assert "SIGSEGV" in caught.value.message
    assert probe(video(3), "auto", LIMITS).frames == 3


def test_the_process_ends_with_the_one_that_asks() -> None:
    code = (
        "import os, sys; from lmms.prep.video import process; from lmms.prep.video.decode import probe;"
        "from lmms.prep.video.facts import VideoLimits; probe(sys.stdin.buffer.read(), 'auto', VideoLimits());"
        "print(process._children[0].process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    run = subprocess.run([sys.executable, "-c", code], input=video(3), capture_output=True)
    assert run.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while is_alive(int(run.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(int(run.stdout))


def test_a_long_video_takes_the_memory_of_a_short_one() -> None:
    """Ten hours at one frame a second; 8 frames of them, and 1,000 in a row."""
    short = video(250, size=(320, 240), options={"g": "50", "preset": "ultrafast"})
    long = again(short, 144)
    facts = probe(long, "auto", LIMITS)
    assert facts.frames == 36_000
    before = peak_memory(child())
    start = time.monotonic()
    pictures = encoded_frames(long, range(0, 36_000, 4_500), None, FrameFormat(), "auto", LIMITS)
    assert len(pictures) == 8
    assert time.monotonic() - start < 20
    encoded_frames(long, range(1_000), (28, 28), FrameFormat(), "auto", LIMITS)
    assert peak_memory(child()) < before + 64 * 2**20


def test_an_8k_video_is_decoded_within_the_default_memory() -> None:
    data = video(1, codec="mjpeg", pixels="yuvj420p", size=(7680, 4320))
    assert probe(data, "auto", LIMITS).size == (7680, 4320)
    (picture,) = encoded_frames(data, [0], (448, 252), FrameFormat(), "auto", LIMITS)
    assert picture
    assert peak_memory(child()) < 2 * 2**30


def test_the_libraries_say_nothing(shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("corrupted_bars.mp4", "moov_missing.mp4", "text.mp4", "tail_missing.mp4", "no_frames.mp4"):
        data = (shared / "data" / "av" / "edge_cases" / name).read_bytes()
        with pytest.raises(Reject):
            probe(data, "auto", VideoLimits(check="frames"))
    assert capfd.readouterr() == ("", "")


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "av").mkdir()
    (tmp_path / "av" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'av'\", name='av')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BuildError, match="extra video"):
        probe(video(3), "auto", LIMITS)


def test_repeated_and_turned_indices_give_a_picture_each() -> None:
    data = video(5)
    pictures = encoded_frames(data, [4, 0, 4], None, FrameFormat("png"), "auto", LIMITS)
    assert len(pictures) == 3
    assert pictures[0] == pictures[2] != pictures[1]
    assert encoded_frames(data, [], None, FrameFormat(), "auto", LIMITS) == []
    with pytest.raises(Reject, match="no frame 5"):
        encoded_frames(data, [5], None, FrameFormat(), "auto", LIMITS)
    with pytest.raises(ValueError, match="no frame -1"):
        encoded_frames(data, [-1], None, FrameFormat(), "auto", LIMITS)
    assert isinstance(probe(data, "auto", LIMITS), VideoFacts)
