"""Sources behind URLs: real servers, the rows of the files, and errors without credentials."""

import json
from pathlib import Path
from typing import Any

import obstore
import polars as pl
import pytest
from obstore.store import from_url

from lmms.configs.errors import SourceError
from lmms.prep.chunks import chunk_values, read_chunks
from lmms.prep.rows.find import unread_text
from lmms.prep.sources import find_sources
from tests.kit.stores.clouds import HUB, clouds
from tests.kit.stores.servers import s3_server, web_server

RECORDS = [{"messages": f"text {i}"} for i in range(3)]
LINES = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)


def read(url: str, folder: Path) -> tuple[list[str], list[Any], str]:
    """(names of the sources, their rows, what is not read)."""
    sources, unread = find_sources([url], None, fetched=folder)
    rows = [value for chunk in read_chunks(sources) for _, value in chunk_values(chunk, sources[chunk.source].columns)]
    return [source.name for source in sources], rows, unread_text(unread)


def test_a_file_of_a_web_server_is_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.jsonl").write_bytes(LINES)
    with web_server(tmp_path / "served") as (_, url):
        assert read(f"{url}/a.jsonl", tmp_path / "copies") == ([f"{url}/a.jsonl"], RECORDS, "")
        with pytest.raises(SourceError, match=r"/none\.jsonl is not there"):
            read(f"{url}/none.jsonl", tmp_path / "copies")
        with pytest.raises(SourceError, match="no list of its files; name each file"):
            read(f"{url}/", tmp_path / "copies")


def test_a_folder_and_a_glob_of_a_bucket_are_read_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pl.DataFrame(RECORDS).write_parquet(tmp_path / "b.parquet")
    with s3_server(monkeypatch) as (_, bucket):
        store = from_url(bucket)
        for name, data in (
            *(("set/a.jsonl", LINES), ("set/b.parquet", (tmp_path / "b.parquet").read_bytes())),
            *(("set/c.png", b""), ("set/._a.jsonl", LINES), ("set/in/d.jsonl", LINES)),
        ):
            obstore.put(store, name, data)
        names, rows, unread = read(f"{bucket}/set/", tmp_path / "folder")
        assert names == [f"{bucket}/set/a.jsonl", f"{bucket}/set/b.parquet"]
        assert rows == 2 * RECORDS
        assert set(unread.split(", ")) == {"1 file .png", "1 hidden file"}
        assert read(f"{bucket}/set/*.parquet", tmp_path / "glob")[1] == RECORDS
        with pytest.raises(SourceError, match="no file of chat records there"):
            read(f"{bucket}/set/*.csv", tmp_path / "none")


def test_a_data_set_of_the_hub_is_read_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pl.DataFrame(RECORDS).write_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    with clouds(tmp_path / "hub", monkeypatch):
        names, rows, _ = read(f"{HUB}/data", tmp_path / "copies")
        assert names == [f"{HUB}/data/train-00000-of-00001.parquet"]
        assert rows == RECORDS
