"""Sources: every container gives the same rows, lines end at LF only, a damaged file is an error that names it."""

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from lmms.configs.errors import SourceError
from lmms.prep.chunks import BLANK, chunk_values, read_chunks
from lmms.prep.reject import Reject
from lmms.prep.rows.chunk import CHUNK_ROWS
from lmms.prep.rows.find import unread_text
from lmms.prep.sources import find_sources

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
    compress = {".gz": gzip.compress, ".zst": zstd.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
    if path.suffix in compress:
        text = json.dumps(records).encode() if ".json." in path.name else lines
        path.write_bytes(compress[path.suffix](text))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, ensure_ascii=False, indent=1), "utf-8")
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


COMPRESSED = ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl.xz", "a.ndjson.bz2", "a.json.xz"]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.ndjson", "a.json", "a.parquet", "file.arrow", "stream.arrow", *COMPRESSED]
)
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


@pytest.mark.parametrize("name", ["a.json", "a.parquet", "file.arrow", "stream.arrow", *COMPRESSED])
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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dataset_dict.json", "["),
        ("dataset_dict.json", '{"splits": "train"}'),
        ("state.json", "{}"),
        ("state.json", '{"_data_files": [{}]}'),
        ("state.json", '{"_data_files": []}'),
        ("state.json", '{"_data_files": [{"filename": "gone.arrow"}]}'),
    ],
)
def test_a_damaged_folder_of_the_package_datasets_is_named(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=str(tmp_path)):
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


def unread(*patterns: Path) -> str:
    return unread_text(find_sources([str(pattern) for pattern in patterns], None)[1])


def test_hidden_names_map_caches_and_leftovers_of_a_folder_are_named_and_not_read(tmp_path: Path) -> None:
    write(tmp_path / "ds-train.arrow", RECORDS[:2])
    names = (".ipynb_checkpoints/a.jsonl", ".trash/a.jsonl", "._x.jsonl", "__MACOSX/a.jsonl", "cache-0123456789.arrow")
    for name in (*names, "a.txt", "b.txt", "c.PNG", "noending", "dataset_info.json", "config/x.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, RECORDS[:1]) if name in names else (tmp_path / name).write_text('{"a": 1}')
    (tmp_path / "linked").symlink_to(tmp_path / ".trash")
    assert len(values(tmp_path)) == 2
    assert len(values(tmp_path / "*")) == 2
    assert set(unread(tmp_path).split(", ")) == {
        *("2 hidden folders", "1 hidden file", "1 folder __MACOSX", "1 map cache", "1 linked folder"),
        *("2 files .txt", "1 file .png", "1 file without ending", "2 files .json without a list of records"),
    }


@pytest.mark.parametrize("name", [".trash/a.jsonl", "._x.jsonl", "cache-0.arrow", "dataset_info.json"])
def test_a_file_that_the_user_names_is_read_whatever_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    assert len(values(write(tmp_path / name, RECORDS[:3]))) == 3


def test_a_folder_without_records_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(SourceError, match=r"no file of chat records there \(1 file \.txt\)"):
        values(tmp_path)


def test_a_file_that_is_reached_by_a_link_or_a_hard_link_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"name": "a"}])
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    os.link(tmp_path / "a.jsonl", tmp_path / "c.jsonl")
    assert values(tmp_path, tmp_path / "c.jsonl") == [{"name": "a"}]


def test_a_folder_of_the_hubs_cache_is_read_at_its_newest_snapshot(tmp_path: Path) -> None:
    """The files of a snapshot are links to blobs, whose names have no ending."""
    for revision in ("old", "new"):
        (tmp_path / "snapshots" / revision / "data").mkdir(parents=True)
        (tmp_path / "blobs").mkdir(exist_ok=True)
        write(tmp_path / "blobs" / "a.jsonl", [{"name": revision}]).rename(tmp_path / "blobs" / revision)
        link = tmp_path / "snapshots" / revision / "data" / "train-00000-of-00001.jsonl"
        link.symlink_to(Path("../../../blobs") / revision)
    with pytest.raises(SourceError, match="several snapshots"):
        values(tmp_path)
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs" / "main").write_text("new")
    assert values(tmp_path) == [{"name": "new"}]
    assert values(tmp_path / "snapshots" / "old") == [{"name": "old"}]


def test_zstd_with_the_longest_window_is_read(tmp_path: Path) -> None:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 31})
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)
    (tmp_path / "a.jsonl.zst").write_bytes(compressor.compress(lines) + compressor.flush())
    assert len(values(tmp_path / "a.jsonl.zst")) == len(RECORDS)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b'[\n {"messages": []},\n {"messages": []}\n]\n', "JSON list.*ending .json"),
        ("a.jsonl", b'[{"messages": []}, {"messages": []}]\n', "JSON list"),
        ("a.jsonl", '{"messages": []}\n'.encode("utf-16"), "UTF-16.*iconv"),
        ("a.json", '[{"messages": []}]'.encode("utf-16-le"), "UTF-16"),
        ("a.csv", "a,b\n".encode("utf-16"), "UTF-16"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), r"\.gz file"),
        ("a.json", b'[{"a": 1}] [{"a": 2}]', "goes on after"),
        ("a.tsv", b'a\tb\n1\t"2\n', "line 2: a quote opens"),
    ],
)
def test_a_file_that_is_something_else_gets_one_sentence(
    name: str, content: bytes, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=f"{name}.*{sentence}"):
        values(tmp_path / name)


def test_lines_that_are_lists_are_rows_like_others(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'[1]\n{"a": 1}\n')
    assert values(tmp_path / "a.jsonl") == [[1], {"a": 1}]


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".tsv.xz"])
def test_a_row_of_a_csv_file_is_a_record_of_strings(ending: str, tmp_path: Path) -> None:
    separator = "\t" if "tsv" in ending else ","
    text = f'question{separator}n\n"two\nlines, one ""cell"""{separator}1\nä{separator}\n'.encode()
    compress = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(ending).suffix, bytes)
    (tmp_path / f"a{ending}").write_bytes(compress(text))
    assert values(tmp_path / f"a{ending}") == [
        {"question": 'two\nlines, one "cell"', "n": "1"},
        {"question": "ä", "n": None},
    ]


def test_a_column_name_that_stands_twice_is_no_fault_unless_the_column_is_used(tmp_path: Path) -> None:
    column = pa.array(["[]", "[]"])
    pq.write_table(pa.table([column, column, column], ["x", "messages", "x"]), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == [{"messages": "[]", "x": True}] * 2
    pq.write_table(pa.table([column, column], ["messages", "messages"]), tmp_path / "b.parquet")
    with pytest.raises(SourceError, match=r"b\.parquet.*two columns have the name messages"):
        values(tmp_path / "b.parquet")


def test_a_damaged_arrow_file_that_ended_the_process_is_an_error_that_names_it(shared: Path) -> None:
    with pytest.raises(SourceError, match=r"lists\.arrow: cannot be read past row 0"):
        values(shared / "data" / "damaged" / "lists.arrow")


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    write(tmp_path / "a[1].jsonl", [{"name": "a"}])
    assert values(tmp_path / "a[1].jsonl") == [{"name": "a"}]


def test_a_record_over_several_lines_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{\n  "messages": []\n}\n')
    with pytest.raises(SourceError, match=r"a\.jsonl: its first record is spread over several lines.*jq -c"):
        values(tmp_path / "a.jsonl")
