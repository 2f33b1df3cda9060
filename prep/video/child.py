"""The process that decodes: it opens a file, and answers with facts, pictures, or why there are none.

A request is a line of JSON on standard input, with the bytes of the file behind it where the request has no path. Each
answer is a kind, a number and a size, then as many bytes: pictures with their index, and at last JSON. The process ends
when the time of a request is over, by its own alarm: so also where a decoder hangs and where nobody waits any more.
"""

import json
import os
import resource
import signal
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from struct import Struct
from typing import IO, Any, BinaryIO

from lmms.prep.reject import Reject
from lmms.prep.video import backends
from lmms.prep.video.container import Container, container_of
from lmms.prep.video.encode import encoded
from lmms.prep.video.facts import FrameFormat, VideoLimits
from lmms.prep.video.resize import resized
from lmms.prep.video.whole import check_whole

HEAD = Struct("<BqQ")
"""Kind of an answer, its number, its bytes."""
READY, PICTURE, FACTS, REJECT, FAULT = range(5)

_DAMAGE = (OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, ArithmeticError)
"""The errors of damaged bytes in a decoder."""


def serve() -> None:
    """The life of the process: a request after another, until there is none."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    try:
        _say(answer, READY, 0, b"")
        for line in sys.stdin.buffer:
            request = json.loads(line)
            limits = VideoLimits(**request["limits"])
            signal.setitimer(signal.ITIMER_REAL, limits.timeout_s)
            whole = sys.stdin.buffer.read(request["bytes"])
            memory = limits.memory + len(whole)
            resource.setrlimit(resource.RLIMIT_DATA, (memory, resource.getrlimit(resource.RLIMIT_DATA)[1]))
            for kind, number, data in _answers(request, whole, limits):
                _say(answer, kind, number, data)
            signal.setitimer(signal.ITIMER_REAL, 0)
    except BrokenPipeError:
        return


def _say(answer: IO[bytes], kind: int, number: int, data: bytes) -> None:
    answer.write(HEAD.pack(kind, number, len(data)) + data)
    answer.flush()


def _answers(request: dict[str, Any], whole: bytes, limits: VideoLimits) -> Iterator[tuple[int, int, bytes]]:
    try:
        with _file(request, whole) as file:
            container = container_of(file)
            check_whole(file, container)
            if request["indices"] is None:
                facts = backends.facts(file, container, request["backend"], limits)
                yield FACTS, 0, json.dumps(asdict(facts)).encode()
            else:
                yield from _pictures(file, container, request, limits)
            yield READY, 0, b""
    except Reject as reject:
        yield _rejected(reject.reason, reject.message)
    except ImportError as error:
        yield FAULT, 0, str(error).encode()
    except MemoryError:
        yield _rejected("media_memory", f"the video needs more than {limits.memory >> 20} MiB of memory to decode")
    except _DAMAGE as error:
        text = (str(error).splitlines() or [""])[0]
        yield _rejected("decode_error", f"the video cannot be decoded: {type(error).__name__}: {text}")


def _rejected(reason: str, message: str) -> tuple[int, int, bytes]:
    return REJECT, 0, json.dumps([reason, message]).encode()


def _pictures(
    file: BinaryIO, container: Container, request: dict[str, Any], limits: VideoLimits
) -> Iterator[tuple[int, int, bytes]]:
    form, size, shape = FrameFormat(**request["form"]), request["size"], None
    indices = sorted(set(request["indices"]))
    for index, frame in backends.frames(file, container, indices, request["backend"], limits):
        shape = shape or frame.shape
        if frame.shape != shape:
            message = f"frame {index} has {frame.shape[1]} x {frame.shape[0]} pixels, frames before it another size"
            raise Reject("decode_error", message)
        yield PICTURE, index, encoded(resized(frame, *size) if size else frame, form)


def _file(request: dict[str, Any], whole: bytes) -> BinaryIO:
    """The file of a request, open: by its path, or made of the bytes behind the request."""
    if request["path"] is None:
        return BytesIO(whole)
    path = Path(os.fsdecode(bytes.fromhex(request["path"])))
    try:
        # A pipe would wait for its other end, and the name is not given to the file: a decoder must not see it.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Reject("missing_file", f"there is no file {path.name!r}") from None
    except OSError as error:
        raise Reject("unreadable_file", f"{path.name!r} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise Reject("not_a_file", f"{path.name!r} is a folder, device or pipe; expected a video file")
    return os.fdopen(file, "rb")


if __name__ == "__main__":
    serve()
