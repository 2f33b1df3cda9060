"""Files that want a decoder to open something else: nothing but the file is opened, by the system calls."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from lmms.prep.reject import Reject
from lmms.prep.video.decode import encoded_frames, probe
from lmms.prep.video.facts import FrameFormat, VideoLimits
from lmms.prep.video.process import stop
from tests.kit.media.videos import video, with_reference

WATCHED = """
import sys
from pathlib import Path
from lmms.prep.reject import Reject
from lmms.prep.video.decode import encoded_frames, probe
from lmms.prep.video.facts import FrameFormat, VideoLimits
for name in sys.argv[1:]:
    for file in (Path(name), Path(name).read_bytes()):
        for ask in (probe, lambda *given: encoded_frames(given[0], [0], None, FrameFormat(), *given[1:])):
            try:
                ask(file, "auto", VideoLimits())
                print(name, "is accepted")
            except Reject as reject:
                print(name, "is rejected:", reject.reason)
"""


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    yield
    stop()


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A video that no other file may lead to."""
    file = tmp_path / "canary.mov"
    file.write_bytes(video(10, container="mov"))
    return file


def attacks(canary: Path) -> dict[str, bytes]:
    """Name of a file -> its bytes."""
    texts = {
        "playlist.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{canary}\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
        "list.mp4": f"ffconcat version 1.0\nfile '{canary}'\nfile 'concat:{canary}|{canary}'\n",
        "dash.mp4": f"<?xml version='1.0'?><MPD><Period><BaseURL>{canary}</BaseURL></Period></MPD>",
        "subtitles.mp4": f"1\n00:00:00,000 --> 00:00:01,000\n{canary}\n",
        "ass.mkv": f"[Script Info]\nVideo File: {canary}\n",
        "session.mp4": f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na={canary}\n",
    }
    data = {name: text.encode() for name, text in texts.items()}
    return data | {"reference.mov": with_reference(canary.read_bytes(), str(canary))}


def test_the_reference_leads_to_the_other_file_where_a_decoder_may_follow(canary: Path, tmp_path: Path) -> None:
    """Else the test below would show nothing."""
    file = tmp_path / "reference.mov"
    file.write_bytes(attacks(canary)["reference.mov"])
    with av.open(str(file), options={"enable_drefs": "1", "use_absolute_path": "1"}) as followed:
        assert len(list(followed.decode(video=0))) == 10


def test_nothing_but_the_file_is_opened(canary: Path, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace to watch the files and the network")
    files = {tmp_path / name: data for name, data in attacks(canary).items()}
    for file, data in files.items():
        file.write_bytes(data)
    calls = tmp_path / "calls"
    strace = ["strace", "-f", "-o", str(calls), "-e", "trace=open,openat,connect,socket,sendto"]
    run = subprocess.run(
        [*strace, sys.executable, "-c", WATCHED, *map(str, files)], capture_output=True, text=True, check=True
    )
    said = run.stdout.splitlines()
    assert len(said) == 4 * len(files)
    assert {line.rpartition(": ")[2] for line in said if "reference" not in line} == {"not_a_video"}
    assert {line.rpartition(": ")[2] for line in said if "reference" in line} == {"no_frames", "decode_error"}
    watched = calls.read_text("utf-8").splitlines()
    assert any(str(next(iter(files))) in line for line in watched)  # strace saw the child, too
    assert [line for line in watched if canary.name in line or "AF_INET" in line] == []


def test_a_pipe_a_folder_and_a_device_are_no_videos(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(Reject, match="not_a_file"):
            probe(path, "auto", VideoLimits(timeout_s=20))


def test_a_name_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose name looks like a list or a pattern is that file."""
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a|b", "pipe:0", "frame%03d.mp4", "-i"):
        Path(name).write_bytes(video(3))
        assert probe(Path(name), "auto", VideoLimits()).frames == 3


def test_a_lying_header_is_not_believed() -> None:
    data = bytearray(video(10, container="avi", codec="mjpeg", pixels="yuvj420p"))
    at = data.index(b"avih") + 8 + 16
    assert int.from_bytes(data[at : at + 4], "little") == 10
    data[at : at + 4] = (10**6).to_bytes(4, "little")
    assert probe(bytes(data), "auto", VideoLimits()).frames == 10
    data = bytearray(video(10))
    at = data.index(b"avc1", data.index(b"stsd")) + 28
    assert int.from_bytes(data[at : at + 4]) == 64 << 16 | 48
    data[at : at + 4] = (7680 << 16 | 4320).to_bytes(4)
    assert probe(bytes(data), "auto", VideoLimits()).size == (64, 48)
    assert len(encoded_frames(bytes(data), [0, 9], None, FrameFormat(), "auto", VideoLimits())) == 2


def test_a_frame_above_the_limit_of_pixels_is_not_decoded() -> None:
    data = bytearray(video(2, size=(640, 480)))
    with pytest.raises(Reject, match="too_many_pixels"):
        probe(bytes(data), "auto", VideoLimits(max_pixels=640 * 480 - 1))
    assert probe(bytes(data), "auto", VideoLimits(max_pixels=640 * 480)).size == (640, 480)
    at = data.index(b"avc1", data.index(b"stsd")) + 28
    data[at : at + 4] = (64 << 16 | 48).to_bytes(4)
    with pytest.raises(Reject, match=r"too_many_pixels|decode_error"):
        probe(bytes(data), "auto", VideoLimits(max_pixels=640 * 480 - 1))


def test_a_codec_that_nobody_knows_is_named_as_the_fault() -> None:
    with pytest.raises(Reject, match="unsupported_format"):
        probe(video(3).replace(b"avc1\x00", b"zzzz\x00"), "auto", VideoLimits())
