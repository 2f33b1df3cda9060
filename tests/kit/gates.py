"""A transform that waits, so that a test can do something while records are read."""

import time
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
