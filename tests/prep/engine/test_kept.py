"""What a build has done is kept: a build that was cut off goes on, a later build makes only what is new."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.errors import BuildError
from lmms.configs.settings.prep import PrepConfig
from lmms.prep import first_pass
from lmms.prep.build import build_shards
from lmms.prep.rows import chunk as chunks
from tests.kit.folders import shard_files, tiny_model_folder
from tests.kit.records import write_records


def settings(folder: Path, out: str, **more: Any) -> PrepConfig:
    model = str(tiny_model_folder(folder))
    values = {"seq_len": 512, "max_rejects": 0.5, "workers": 0, "store": str(folder / "store"), **more}
    return PrepConfig(sources=(str(folder / "data"),), model=model, out=str(folder / out), **values)


def chunks_made(config: PrepConfig, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many chunks a build had to make; the build is held to one that keeps nothing."""
    made = []
    make: Callable[..., Any] = first_pass.spool_chunk

    def counted(*args: Any) -> Any:
        made.append(args)
        return make(*args)

    with monkeypatch.context() as patched:
        patched.setattr(first_pass, "spool_chunk", counted)
        build_shards(config)
    again = replace(config, out=config.out + "-again", store="none")
    build_shards(again)
    assert shard_files(config.out) == shard_files(again.out)
    return len(made)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 50)


def test_only_what_is_new_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(tmp_path / "data")
    assert chunks_made(settings(tmp_path, "first"), monkeypatch) == 7
    assert chunks_made(settings(tmp_path, "same"), monkeypatch) == 0
    assert chunks_made(settings(tmp_path, "longer packs", seq_len=1024), monkeypatch) == 0
    record = {"messages": [{"role": "user", "content": "new"}, {"role": "assistant", "content": "file"}]}
    (tmp_path / "data" / "a-first.jsonl").write_text(json.dumps(record) + "\n")
    assert chunks_made(settings(tmp_path, "one file more"), monkeypatch) == 1
    with (tmp_path / "data" / "records.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    assert chunks_made(settings(tmp_path, "one line more"), monkeypatch) == 1


@pytest.mark.parametrize("change", [{"reasoning": "masked"}, {"max_pixels": 4096}, {"targets": "all"}, {"seed": 1}])
def test_another_setting_of_records_makes_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    write_records(tmp_path / "data", 60)
    chunks_made(settings(tmp_path, "first"), monkeypatch)
    assert chunks_made(settings(tmp_path, "changed", **change), monkeypatch) == 2


def test_another_template_makes_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(tmp_path / "data", 60)
    chunks_made(settings(tmp_path, "first"), monkeypatch)
    template = tmp_path / "other.jinja"
    template.write_text((tmp_path / "model" / "chat_template.jinja").read_text() + "{# the same, with a remark #}")
    assert chunks_made(settings(tmp_path, "changed", chat_template=str(template)), monkeypatch) == 2


def test_records_that_were_too_long_are_made_again_for_longer_packs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(tmp_path / "data", 60)
    assert chunks_made(settings(tmp_path, "first", seq_len=96), monkeypatch) == 2
    assert chunks_made(settings(tmp_path, "longer"), monkeypatch) == 2
    assert chunks_made(settings(tmp_path, "shorter", seq_len=96), monkeypatch) == 2


def test_a_picture_that_changed_or_came_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(tmp_path / "data", 60)
    picture = tmp_path / "data" / "0.png"  # of records of the first chunk
    whole = picture.read_bytes()
    picture.unlink()
    chunks_made(settings(tmp_path, "missing"), monkeypatch)
    assert chunks_made(settings(tmp_path, "still missing"), monkeypatch) == 0
    picture.write_bytes(whole)
    assert chunks_made(settings(tmp_path, "there"), monkeypatch) == 1
    picture.write_bytes((tmp_path / "data" / "4.png").read_bytes())
    assert chunks_made(settings(tmp_path, "another"), monkeypatch) == 1
    before = picture.stat()
    picture.write_bytes(picture.read_bytes()[::-1])
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert chunks_made(settings(tmp_path, "of the same size and time"), monkeypatch) == 1


@pytest.mark.parametrize("damage", [b"", b"x" * 1000, None])
@pytest.mark.parametrize("ending", [".npz", ".samples"])
def test_what_is_damaged_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, damage: bytes | None
) -> None:
    write_records(tmp_path / "data", 60)
    chunks_made(settings(tmp_path, "first"), monkeypatch)
    kept = next((tmp_path / "store").rglob(f"*{ending}"))
    kept.unlink()
    if damage is not None:
        kept.write_bytes(damage)
    assert chunks_made(settings(tmp_path, "again"), monkeypatch) == 1


@pytest.mark.parametrize("ending", [".npz", ".samples"])
def test_the_file_of_another_chunk_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    write_records(tmp_path / "data", 60)
    chunks_made(settings(tmp_path, "first"), monkeypatch)
    one, other = (tmp_path / "store").rglob(f"*{ending}")
    content = other.read_bytes()
    one.unlink()
    one.write_bytes(content)
    assert chunks_made(settings(tmp_path, "again"), monkeypatch) == 1


def test_a_store_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(tmp_path / "data", 60)
    (tmp_path / "store").write_text("a file")
    assert chunks_made(settings(tmp_path, "first"), monkeypatch) == 2


def test_by_default_the_store_is_there_as_long_as_the_build_is_not(tmp_path: Path) -> None:
    write_records(tmp_path / "data", 60)
    config = settings(tmp_path, "out", store=None, max_rejects=0.0)
    with pytest.raises(Exception, match="records were rejected"):
        build_shards(config)
    assert len(list((tmp_path / "out.lmms-store").rglob("*.npz"))) == 2
    build_shards(replace(config, max_rejects=0.5))
    assert not (tmp_path / "out.lmms-store").exists()


def test_the_store_of_a_build_that_was_killed_when_it_was_complete_goes_with_the_next_word(tmp_path: Path) -> None:
    write_records(tmp_path / "data", 60)
    config = settings(tmp_path, "out", store=None)
    build_shards(config)
    before = shard_files(config.out)
    (tmp_path / "out.lmms-store" / "aa").mkdir(parents=True)
    with pytest.raises(BuildError, match="out exists"):
        build_shards(config)
    assert not (tmp_path / "out.lmms-store").exists()
    assert shard_files(config.out) == before


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_a_build_that_was_killed_goes_on_to_the_same_bytes(tmp_path: Path, workers: int) -> None:
    write_records(tmp_path / "data", 3000)
    config = settings(tmp_path, "out", store=None, workers=workers)
    code = (
        "import sys\nfrom lmms.configs.settings.prep import PrepConfig\nfrom lmms.prep.build import build_shards\n"
        "if __name__ == '__main__':\n"
        f"    build_shards({config!r})\n"
    )
    (tmp_path / "build.py").write_text(code)
    started = subprocess.Popen([sys.executable, str(tmp_path / "build.py")], start_new_session=True)
    store = tmp_path / "out.lmms-store"
    while len(kept := list(store.rglob("*.npz"))) < 2:
        assert started.poll() is None
        time.sleep(0.001)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    made = {file: file.stat().st_ino for file in kept}
    assert not (tmp_path / "out").exists()
    build_shards(replace(config, workers=0, store=str(store)))
    assert {file: file.stat().st_ino for file in kept} == made
    build_shards(replace(config, workers=0, out=str(tmp_path / "undisturbed"), store="none"))
    assert shard_files(config.out) == shard_files(str(tmp_path / "undisturbed"))
