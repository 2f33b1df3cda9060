"""Files and folders are whole or not there, for whoever the umask lets read them."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmms.configs.errors import BuildError
from lmms.configs.files import beside, mode_by_umask, new_folder, write_whole


@pytest.fixture(params=[0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", "one é")
    write_whole(tmp_path / "a.json", b"two")
    assert (tmp_path / "a.json").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_fails_in_the_middle_leaves_the_file_before(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "before")
    with pytest.raises(IsADirectoryError), beside(tmp_path / "a") as part:
        tmp_path.write_bytes(b"%d" % part.write_text("half"))
    assert (tmp_path / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_takes_its_name_when_it_is_whole_and_leftovers_of_a_kill_go(tmp_path: Path) -> None:
    leftover = tmp_path / "run.part" / "old"
    leftover.mkdir(parents=True)
    with beside(tmp_path / "run") as part:
        part.mkdir()
        (part / "new").write_text("1")
        assert not (tmp_path / "run").exists()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["new"]
    assert not leftover.exists()


def test_a_new_folder_is_never_written_over_another(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(BuildError, match="out exists; remove it or name another folder"),
        new_folder(tmp_path / "out", BuildError),
    ):
        pass
    with pytest.raises(IsADirectoryError), new_folder(tmp_path / "deep" / "new", BuildError) as part:
        part.write_text("a folder is no file")
    assert list((tmp_path / "deep").iterdir()) == []
    with (
        new_folder(tmp_path / "new", BuildError),
        pytest.raises(BuildError, match="another process is writing"),
        new_folder(tmp_path / "new", BuildError),
    ):
        pass


def test_the_umask_decides_who_may_read(tmp_path: Path, umask: int) -> None:
    write_whole(tmp_path / "a", "1")
    with new_folder(tmp_path / "folder", BuildError) as part:
        with mode_by_umask(part / "b"):
            (part / "private").write_text("2")
            (part / "private").chmod(0o600)
            (part / "private").rename(part / "b")
        with beside(part / "inner") as inner:
            inner.mkdir()
    for file in (tmp_path / "a", tmp_path / "folder" / "b"):
        assert mode(file) == 0o666 & ~umask
    for folder in (tmp_path / "folder", tmp_path / "folder" / "inner"):
        assert mode(folder) == 0o777 & ~umask
