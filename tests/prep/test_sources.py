"""Sources: every container gives the same rows, lines end at LF only, a damaged file is an error that names it."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmms.configs.errors import SourceError
from lmms.prep.reject import Reject
from lmms.prep.rows.chunk import CHUNK_ROWS
from lmms.prep.sources import BLANK, chunk_values, find_sources, read_chunks

RECORDS = [{"id": i, "messages": [{"role": "user", "content": f"line \u2028 {i}"}]} for i in range(3 * CHUNK_ROWS + 5)]


def values(*patterns: Path | str) -> list[Any]:
    found = []
    sources, _ = find_sources([str(p) for p in patterns], None)
    for chunk in read_chunks(sources):
        found += [value for _, value in chunk_values(chunk, sources[chunk.source].columns)]
    return found


def write(path: Path, records: list[Any] = RECORDS) -> Path:
    """Write records in the container that the name asks for."""
    lines = b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)
    table = pa.Table.from_pylist(records)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines))
    elif path.name.endswith(".zst"):
        path.write_bytes(pa.compress(lines, "zstd", asbytes=True))
    elif path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=700)
    elif path.name == "stream.arrow":
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_bytes(lines)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "file.arrow", "stream.arrow"])
def test_every_container_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    rows = values(write(tmp_path / name))
    assert [row["messages"] for row in rows] == [record["messages"] for record in RECORDS]
    assert all(row["id"] is not None for row in rows)


def test_rows_are_numbered_through_all_chunks(tmp_path: Path) -> None:
    (source,), _ = find_sources([str(write(tmp_path / "a.jsonl"))], None)
    chunks = list(read_chunks([source]))
    assert len(chunks) == 4
    assert [row for chunk in chunks for row, _ in chunk_values(chunk, source.columns)] == list(range(len(RECORDS)))
    assert chunks[-1].file_bytes == source.bytes


def test_blank_lines_a_first_byte_order_mark_and_a_missing_last_line_feed_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n \t\r\n{"a": 2}')
    assert values(path) == [{"a": 1}, BLANK, BLANK, {"a": 2}]


def test_a_bad_line_is_a_reject_and_its_neighbours_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n{"a": 3}\n')
    first, bad, last = values(path)
    assert (first, last) == ({"a": 1}, {"a": 3})
    assert isinstance(bad, Reject)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "file.arrow", "stream.arrow"])
def test_a_cut_off_file_is_an_error_that_names_it_and_never_a_short_read(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SourceError, match=name):
        values(path)


def test_folders_and_globs_are_read_by_name_and_each_file_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, [{"name": name}])
    (tmp_path / "picture.png").write_bytes(b"")
    names = [{"name": "a.jsonl"}, {"name": "b.jsonl"}, {"name": "sub/c.jsonl"}]
    assert values(tmp_path) == names
    assert values(tmp_path / "*.jsonl") == names[:2]
    assert values(tmp_path / "b.jsonl", tmp_path) == [names[1], names[0], names[2]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.jsonl", "does not exist"),
        (lambda folder: folder / "*.jsonl", "no file of chat records"),
        (lambda folder: folder, "no file of chat records"),
    ],
)
def test_a_source_that_is_not_there_is_an_error(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message):
        values(make(tmp_path))


def test_a_file_of_another_kind_is_an_error_that_lists_the_known_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a,b\n")
    with pytest.raises(SourceError, match=r"expected \.jsonl, .*\.zst.*\.parquet"):
        values(tmp_path / "a.txt")


def test_a_dict_of_splits_asks_for_one_split(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(SourceError, match="train, test"):
        values(tmp_path)


def test_real_containers_hold_what_their_manifest_says(shared: Path) -> None:
    formats = shared / "data" / "text" / "formats"
    for name, rows in {
        "gsm8k_300.parquet": 300,
        "sgd_tools_200_json_columns.parquet": 200,
        "crosswoz_200.arrow": 200,
        "crosswoz_200.stream.arrow": 200,
        "alpaca_eval_300_hf": 300,
        "gpteacher_300.jsonl.gz": 300,
    }.items():
        assert len(values(formats / name)) == rows


def test_an_arrow_stream_cut_between_two_batches_is_no_shorter_stream(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(RECORDS)
    path = tmp_path / "stream.arrow"
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    with pa.ipc.new_stream(str(tmp_path / "first.arrow"), table.schema) as writer:
        writer.write_table(table.slice(0, 100))
    end = (tmp_path / "first.arrow").stat().st_size - 8  # without its end mark
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(SourceError, match="no end mark"):
        values(path)


def test_columns_that_are_not_used_are_named_and_never_converted(tmp_path: Path) -> None:
    nanoseconds = pa.array([1, None], pa.timestamp("ns"))
    not_utf8 = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"\xff\xfe")]
    )
    messages = pa.array(["[]", "[]"])
    pq.write_table(pa.table({"messages": messages, "when": nanoseconds, "raw": not_utf8}), tmp_path / "a.parquet")
    first, second = values(tmp_path / "a.parquet")
    assert first == {"messages": "[]", "when": True, "raw": True}
    assert second == {"messages": "[]", "when": None, "raw": True}


def test_a_row_whose_text_is_not_utf8_is_a_reject_and_its_neighbours_are_read(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(np.array([0, 2, 4, 6], np.int32)), pa.py_buffer(b"[]\xff\xfe[]")]
    )
    pq.write_table(pa.table({"messages": texts}), tmp_path / "a.parquet")
    first, bad, last = values(tmp_path / "a.parquet")
    assert first == last == {"messages": "[]"}
    assert isinstance(bad, Reject)
    assert bad.reason == "not_utf8"


def test_what_a_build_leaves_in_a_folder_is_not_read_as_records(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"name": "a"}])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    write(tmp_path / "out" / "packs.parquet")
    write(tmp_path / "out.rejects.parquet")
    (tmp_path / "out.lmms-part").mkdir()
    write(tmp_path / "out.lmms-part" / "packs.parquet")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert values(tmp_path) == [{"name": "a"}]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    write(tmp_path / "a[1].jsonl", [{"name": "a"}])
    assert values(tmp_path / "a[1].jsonl") == [{"name": "a"}]
