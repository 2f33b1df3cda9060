"""torch's writer of checkpoints, with an error that tells why a file could not be written.

Where a write fails, torch.save raises the error of its zip writer: "[enforce fail at inline_container.cc:672] .
unexpected pos 704 vs 598".
"""

import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future


class Writer(FileSystemWriter):
    """FileSystemWriter that raises the OSError of the file instead of torch.save's error."""

    def __init__(self, folder: Path) -> None:
        # Without copying ahead, which would open the first GPU from the thread that saves.
        super().__init__(folder, per_thread_copy_ahead=0)
        self._faults: list[OSError] = []
        self.fs = _Files(self._faults)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            if self._faults:
                raise self._faults[0] from error
            raise


class _Files(FileSystem):
    def __init__(self, faults: list[OSError]) -> None:
        self._faults = faults

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        with io.BufferedWriter(_File(path, self._faults)) as stream:
            yield stream


class _File(io.FileIO):
    def __init__(self, path: str | os.PathLike[str], faults: list[OSError]) -> None:
        super().__init__(os.fspath(path), "w")
        self._faults = faults

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self._faults.append(OSError(error.errno, error.strerror, self.name))
            raise
