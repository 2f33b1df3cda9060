"""The process that decodes: it opens a file, and answers with what a module makes of it, or why there is nothing.

A request is a line of JSON on standard input, with the bytes of the file behind it where the request has no path. Each
answer is a kind, a number and a size, then as many bytes: results, such as pictures with their index, and at last
whether that was all. The process ends when the time of a request is over, by its own alarm: so also where a decoder
hangs and where nobody waits any more.
"""

import json
import os
import resource
import signal
import stat
import sys
from collections.abc import Iterator
from importlib import import_module
from io import BytesIO
from pathlib import Path
from struct import Struct
from typing import IO, Any, BinaryIO

from lmms.prep.reject import Reject
from lmms.prep.video.facts import VideoLimits

HEAD = Struct("<BqQ")
"""Kind of an answer, its number, its bytes."""
READY, RESULT, REJECT, FAULT = range(4)

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
    kind = request["kind"]
    try:
        with _file(request, whole) as file:
            for number, data in import_module(request["module"]).results(file, request["details"], limits):
                yield RESULT, number, data
            yield READY, 0, b""
    except Reject as reject:
        yield _rejected(reject.reason, reject.message)
    except ImportError as error:
        yield FAULT, 0, str(error).encode()
    except MemoryError:
        yield _rejected("media_memory", f"the {kind} needs more than {limits.memory >> 20} MiB of memory to decode")
    except _DAMAGE as error:
        text = (str(error).splitlines() or [""])[0]
        yield _rejected("decode_error", f"the {kind} cannot be decoded: {type(error).__name__}: {text}")


def _rejected(reason: str, message: str) -> tuple[int, int, bytes]:
    return REJECT, 0, json.dumps([reason, message]).encode()


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
        message = f"{path.name!r} is a folder, device or pipe; expected a {request['kind']} file"
        raise Reject("not_a_file", message)
    return os.fdopen(file, "rb")


if __name__ == "__main__":
    serve()
