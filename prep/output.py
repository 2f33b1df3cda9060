"""A folder that is built beside its name and renamed: it is complete or it is not there."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmms.configs.errors import BuildError

PART_ENDING = ".lmms-part"
"""Of the folder that a build writes into: a name that no one else would give, since what is in it is deleted."""
REJECTS_ENDING = ".rejects.parquet"
"""Of the ledger that a build leaves beside its output when it stops for too many rejects."""


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """Yields OUT.lmms-part, which becomes `out` on success and goes away otherwise.

    What a killed build left there is removed; a build that is still running is an error.
    """
    if out.exists():
        raise BuildError(f"{out} exists; remove it or choose another --out")
    part = out.with_name(out.name + PART_ENDING)
    part.mkdir(parents=True, exist_ok=True)
    # The lock goes with the process, so a kill leaves none behind. It is held on the folder, not on its name.
    descriptor = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not part.exists() or not os.path.samestat(os.fstat(descriptor), part.stat()):
            raise BlockingIOError
    except BlockingIOError:
        os.close(descriptor)
        raise BuildError(f"another build is writing {out}; wait for it or choose another --out") from None
    try:
        for leftover in part.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield part
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(descriptor)
