"""Transforms that wait, so that a test can do something while records are read, or that end their process."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import ray

from lmms.prep.records.record import Record


def waits(record: Record, draws: object, gate: str) -> Record:
    """The record, once there is no file `gate`; after a minute all the same. GATE.NODE tells on which node it waits."""
    until = time.monotonic() + 60
    while Path(gate).exists() and time.monotonic() < until:
        Path(f"{gate}.{ray.get_runtime_context().get_node_id()}").touch()
        time.sleep(0.02)
    return record


def kills(record: Record, draws: object, words: Sequence[str]) -> Record:
    """The record, unless it has one of these words: then its process is killed."""
    if any(word in turn.text for turn in record.messages for word in words):
        os.kill(os.getpid(), signal.SIGKILL)
    return record
