"""A transform that waits, so that a test can do something while records are read."""

import time
from pathlib import Path

from lmms.prep.records.record import Record


def waits(record: Record, draws: object, gate: str) -> Record:
    """The record, once there is no file `gate`; after a minute all the same."""
    until = time.monotonic() + 60
    while Path(gate).exists() and time.monotonic() < until:
        time.sleep(0.02)
    return record
