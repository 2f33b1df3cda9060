"""A full disk names the folder, and what a build needs."""

import errno
from pathlib import Path

import pytest

from lmms.configs.errors import BuildError
from lmms.prep.engine.room import folder_bytes, room_for


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError("write failed: (os error 28)")]
)
def test_a_full_disk_is_named_with_the_space_needed(error: OSError, tmp_path: Path) -> None:
    (tmp_path / "a.samples").write_bytes(bytes(3 * 2**20))
    with (
        pytest.raises(BuildError, match=f"the disk of {tmp_path} is full: 6.0 MiB are needed"),
        room_for(tmp_path, lambda: 2 * folder_bytes(tmp_path)),
    ):
        raise error


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), room_for(tmp_path, lambda: 0):
        (tmp_path / "none").read_bytes()
