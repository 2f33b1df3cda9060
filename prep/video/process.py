"""The parent's side of the process that decodes: started with the first file, and again after each that ended it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from tempfile import TemporaryFile
from typing import IO, Any, Literal

from lmms.configs.errors import BuildError
from lmms.prep.reject import Reject
from lmms.prep.rows.child import how_ended
from lmms.prep.video.child import FAULT, HEAD, READY, REJECT
from lmms.prep.video.facts import VideoFile, VideoLimits


@dataclass(frozen=True, slots=True)
class _Child:
    process: "subprocess.Popen[bytes]"
    words: IO[bytes]
    """What the libraries say: standard error of the process."""


_children: list[_Child] = []
"""The process of this process, if there is one: to start it takes longer than to decode a short video."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a file."""

    kind: Literal["video", "sound"]
    """What a message calls the file."""
    module: str
    """Its `results` gives the answers, in the child."""
    limits: VideoLimits
    details: Mapping[str, Any]
    """What the module reads, fit for JSON."""


def answers(file: VideoFile, question: Question) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of each answer of the child. Raises Reject: what the child says, or how the child ended.

    BuildError where a library is not installed.
    """
    child = _running()
    is_whole = False
    try:
        _ask(child, file, question)
        while True:
            kind, number, data = _next(child)
            if kind == REJECT:
                reason, message = json.loads(data)
                is_whole = reason != "media_memory"  # a library may not have given back what it has
                raise Reject(reason, message)
            if kind == FAULT:
                raise BuildError(data.decode())
            if kind == READY:
                is_whole = True
                return
            yield number, data
    except (EOFError, BrokenPipeError):
        raise _death(child, question) from None
    finally:
        if not is_whole:  # what the child goes on to say is no answer to the next question
            stop()


def stop() -> None:
    """Ends the process, if there is one."""
    while _children:
        child = _children.pop()
        child.process.kill()
        child.process.communicate()
        child.words.close()


def _running() -> _Child:
    if _children and _children[-1].process.poll() is not None:
        stop()
    if not _children:
        words = TemporaryFile()  # noqa: SIM115  (closed in `stop`)
        # -P: no module of the working folder may stand in for another.
        command = [sys.executable, "-P", "-m", "lmms.prep.video.child"]
        pipe = subprocess.PIPE
        # A process group of its own: Ctrl-C ends the child by way of its parent only.
        # A thread each: prep has a process for each core.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=words, env=environment, process_group=0)
        _children.append(_Child(process, words))
        try:
            _next(_children[-1])
        except EOFError:
            words.seek(0)
            text = words.read().decode(errors="replace")
            raise RuntimeError(f"the process that decodes does not start: {text}") from None
    return _children[-1]


def _ask(child: _Child, file: VideoFile, question: Question) -> None:
    # The folder of this process may be another by now than that of the child.
    path, whole = (None, file) if isinstance(file, bytes) else (os.fsencode(file.absolute()).hex(), b"")
    request = asdict(question) | {"path": path, "bytes": len(whole)}
    assert child.process.stdin is not None
    child.process.stdin.write(json.dumps(request).encode() + b"\n")
    child.process.stdin.write(whole)
    child.process.stdin.flush()


def _next(child: _Child) -> tuple[int, int, bytes]:
    assert child.process.stdout is not None
    head = child.process.stdout.read(HEAD.size)
    if len(head) < HEAD.size:
        raise EOFError
    kind, number, size = HEAD.unpack(head)
    data = child.process.stdout.read(size)
    if len(data) < size:
        raise EOFError
    return kind, number, data


def _death(child: _Child, question: Question) -> Reject:
    code = child.process.wait()
    if code == -signal.SIGALRM:
        message = f"the {question.kind} was not decoded within {question.limits.timeout_s:g} s"
        return Reject("media_timeout", f"{message}; raise media_timeout to give it more time")
    child.words.seek(0)
    words = child.words.read().decode(errors="replace").strip().splitlines()
    said = f": {words[-1]}" if words else ""
    return Reject("media_crash", f"the process that decoded the {question.kind} {how_ended(code)}{said}")
