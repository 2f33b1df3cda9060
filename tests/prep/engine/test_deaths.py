"""A process that dies costs its chunk a retry; a record with which two die is rejected by name, and nothing else."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lmms.configs.errors import BuildError
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.prep.engine import deaths
from lmms.prep.engine.deaths import PROCESS_DIED, after_death
from lmms.prep.rows import chunk as chunks
from lmms.prep.rows.chunk import Chunk
from tests.kit.folders import shard_files, tiny_model_folder
from tests.kit.records import write_records

CODE = """
import os, pathlib, signal

def deadly(record, draws, words=(), healed="", once=False):
    text = " ".join(turn.text for turn in record.messages)
    if any(word in text for word in words) and not pathlib.Path(healed or "none").exists():
        if once:
            pathlib.Path(healed).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return record
"""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 50)


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that builds 120 records with a transform of the user's; returns the folder."""
    name = f"deadly_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = write_records(tmp_path / "data", 120)
    model = str(tiny_model_folder(tmp_path))

    def built(out: str, workers: int, join: bool = False, **options: Any) -> Path:
        transforms: list[dict[str, Any]] = [{"function": f"{name}:deadly", "options": options}]
        transforms += [{"name": "join", "images": 2}] if join else []
        values: dict[str, Any] = {"max_rejects": 0.5, "store": str(tmp_path / "store"), "workers": workers}
        build_shards(
            PrepConfig(
                sources=(str(source),), model=model, seq_len=512, out=out, transforms=tuple(transforms), **values
            )
        )
        return tmp_path / out

    return built


def files(folder: Path) -> dict[str, bytes]:
    """The files of a build, and its manifest without the options of the function, which name what kills."""
    found = shard_files(folder)
    manifest = json.loads(found["manifest.json"])
    del manifest["settings"]["transforms"], manifest["checksum"]
    return found | {"manifest.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize("join", [False, True])
def test_a_process_that_dies_once_costs_nothing(build: Callable[..., Path], tmp_path: Path, join: bool) -> None:
    dying = build("out", 1, join, words=["answer 79"], healed=str(tmp_path / "healed"), once=True)
    assert (tmp_path / "healed").exists()
    assert files(dying) == files(build("undisturbed", 0, join))


def test_a_record_that_ends_two_processes_is_rejected_alone_for_any_number_of_workers(
    build: Callable[..., Path],
) -> None:
    words = ["answer 53", "answer 97"]
    outs = [build(f"out{workers}", workers, words=words) for workers in (1, 2, 5)]
    rejects = pl.read_parquet(outs[0] / "rejects.parquet").filter(reason=PROCESS_DIED)
    assert rejects["row"].to_list() == [54, 98]  # a blank line stands before
    assert set(rejects["message"]) == {
        "two processes died with this record; the second was ended by SIGKILL, as the system does when memory runs out"
        " (fewer workers need less)"
    }
    whole = build("undisturbed", 0)
    lost, kept = (set(pl.read_parquet(out / "samples.parquet")["row"]) for out in (outs[0], whole))
    assert kept - lost == {54, 98}
    assert files(outs[0]) == files(outs[1]) == files(outs[2])


def test_what_was_lost_is_read_again_by_the_next_build(build: Callable[..., Path], tmp_path: Path) -> None:
    options = {"words": ["answer 53"], "healed": str(tmp_path / "healed")}
    lost = pl.read_parquet(build("first", 1, **options) / "rejects.parquet")
    (tmp_path / "healed").touch()
    again = pl.read_parquet(build("again", 0, **options) / "rejects.parquet")
    assert (lost["reason"].to_list().count(PROCESS_DIED), again["reason"].to_list().count(PROCESS_DIED)) == (1, 0)


def test_a_machine_on_which_every_process_dies_ends_the_build(
    build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deaths, "IN_A_ROW", 2)
    with pytest.raises(BuildError, match=r"one record after another: rows \d+ to \d+ of .*twice each; the last was"):
        build("out", 2, words=["word", "answer"])
    assert not list(Path().glob("out*"))


def test_deaths_at_ever_other_rows_end_the_build() -> None:
    chunk = Chunk(0, 0, [b"{}"] * 99, 0)
    for row in range(10):
        chunk = after_death(chunk, "ended", row, 0, "a.jsonl")
    with pytest.raises(BuildError, match=r"11 worker processes died, at several rows of a\.jsonl"):
        after_death(chunk, "ended", 10, 0, "a.jsonl")


def test_only_so_many_records_of_a_build_may_be_lost() -> None:
    chunk = after_death(Chunk(0, 0, [b"{}"] * 99, 0), "ended", None, 100, "a.jsonl")
    chunk = after_death(chunk, "ended", 5, 100, "a.jsonl")
    with pytest.raises(BuildError, match="more than 100 records"):
        after_death(chunk, "ended", 5, 100, "a.jsonl")
