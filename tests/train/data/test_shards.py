"""Reading packs: exact, checked, and every fault by name."""

import os
import pickle
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from lmms.configs.contract.manifest import PACKS_NAME, Dataset, open_dataset
from lmms.configs.contract.pack import Pack
from lmms.configs.errors import DatasetError
from lmms.train.data import shards as stream
from lmms.train.data.shards import PackReader, read_sidecar, read_sources
from lmms.train.data.verify import verify
from tests.kit.shards import PICTURE_MODEL, make_pack, write_shards


@pytest.fixture(scope="module")
def packs() -> list[Pack]:
    """Seven packs of one to three conversations; every second one has pictures."""
    rng = np.random.default_rng(0)
    lengths = [rng.integers(4, 30, 1 + i % 3).tolist() for i in range(7)]
    return [make_pack(rng, length, 99, images=2 * (i % 2), model=PICTURE_MODEL) for i, length in enumerate(lengths)]


@pytest.fixture
def dataset(tmp_path: Path, packs: list[Pack]) -> Dataset:
    """The packs in two shards."""
    return open_dataset(write_shards(tmp_path / "shards", packs, PICTURE_MODEL, seq_len=4096))


def folder_of(dataset: Dataset) -> Path:
    return Path(dataset.where)


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def assert_equal(read: Pack, written: Pack) -> None:
    for field in fields(Pack):
        a, b = getattr(read, field.name), getattr(written, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert (a == b).all()
        else:
            assert a == b


def test_packs_are_read_as_they_were_written(dataset: Dataset, packs: list[Pack]) -> None:
    reader, sidecar = PackReader([dataset]), read_sidecar(dataset)
    for i in (6, 0, 3, 2, 5, 1, 4, 0):
        assert_equal(reader.read(sidecar.place(i)), packs[i])
    assert any(pack.media for pack in packs)
    assert not all(pack.media for pack in packs)
    reader.close()


def test_sidecar_and_sources_hold_every_column_of_the_table(dataset: Dataset, packs: list[Pack]) -> None:
    sidecar, (starts, ids, tokens) = read_sidecar(dataset), read_sources(dataset)
    rows = pq.read_table(folder_of(dataset) / PACKS_NAME).to_pylist()
    assert len(sidecar) == len(rows) == len(packs)
    for i, row in enumerate(rows):
        assert ids[starts[i] : starts[i + 1]].tolist() == row.pop("source_ids")
        assert tokens[starts[i] : starts[i + 1]].tolist() == row.pop("source_tokens")
        assert {name: getattr(sidecar, name)[i].item() for name in row} == row
    assert sidecar.xxh3.dtype == np.uint64
    assert sidecar.tokens.tolist() == [len(pack.input_ids) for pack in packs]


def test_a_flipped_byte_anywhere_in_a_pack_is_named(dataset: Dataset) -> None:
    sidecar = read_sidecar(dataset)
    shard = folder_of(dataset) / dataset.shards[1].name
    whole = shard.read_bytes()
    pack = 5
    start, size = int(sidecar.offset[pack]), int(sidecar.bytes[pack])
    for place in [*range(start, start + 60), *range(start + 60, start + size, 97), start + size - 1]:
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        reader = PackReader([open_dataset(folder_of(dataset))])
        with pytest.raises(DatasetError, match=rf"{shard.name}: pack 5 at byte {start} is damaged.*copy"):
            reader.read(sidecar.place(pack))
        reader.read(sidecar.place(4))
        reader.close()


@pytest.mark.parametrize("missing", [1, 100, 10**9])
def test_a_shard_cut_off_while_it_is_read_is_named(dataset: Dataset, missing: int) -> None:
    shard = folder_of(dataset) / dataset.shards[1].name
    reader, sidecar = PackReader([dataset]), read_sidecar(dataset)
    os.truncate(shard, max(dataset.shards[1].bytes - missing, 0))
    with pytest.raises(DatasetError, match=rf"{shard.name}: pack 6 .* has \d+ bytes, expected \d+: truncated"):
        reader.read(sidecar.place(6))
    reader.close()


def test_a_missing_shard_is_named_and_the_others_are_read(dataset: Dataset) -> None:
    reader, sidecar = PackReader([dataset]), read_sidecar(dataset)
    (folder_of(dataset) / dataset.shards[1].name).unlink()
    reader.read(sidecar.place(0))
    for _ in range(2):
        with pytest.raises(DatasetError, match=rf"{dataset.shards[1].name}: pack 6 .*No such file.*copy the shard"):
            reader.read(sidecar.place(6))
    reader.close()


def test_offsets_in_a_shard_are_not_trusted_but_checked(dataset: Dataset, packs: list[Pack]) -> None:
    """Where packs are is read from the sidecar; a change in the table of a shard is seen by `lmms inspect verify`."""
    shard = folder_of(dataset) / dataset.shards[1].name
    data = bytearray(shard.read_bytes())
    data[9] ^= 1
    shard.write_bytes(data)
    reader, sidecar = PackReader([dataset]), read_sidecar(dataset)
    assert_equal(reader.read(sidecar.place(4)), packs[4])
    reader.close()
    assert f"{shard}: its hash is not the index's" in list(verify(dataset.where))


def test_places_are_of_the_data_set_that_they_name(dataset: Dataset, packs: list[Pack], tmp_path: Path) -> None:
    other = open_dataset(write_shards(tmp_path / "other", packs[::-1], PICTURE_MODEL, seq_len=4096))
    reader = PackReader([dataset, other])
    for i in (0, 6, 2):
        assert_equal(reader.read(read_sidecar(dataset).place(i)), packs[i])
        assert_equal(reader.read(read_sidecar(other).place(i, 1)), packs[6 - i])
    reader.close()


@pytest.mark.parametrize("pack", [-1, 7])
def test_a_pack_that_does_not_exist_is_refused(dataset: Dataset, pack: int) -> None:
    with pytest.raises(DatasetError, match=f"no pack {pack}; expected 0 to 6"):
        read_sidecar(dataset).place(pack)


def test_a_sidecar_of_other_shards_is_refused(dataset: Dataset, packs: list[Pack], tmp_path: Path) -> None:
    other = write_shards(tmp_path / "other", packs[::-1], PICTURE_MODEL, seq_len=4096)
    (other / PACKS_NAME).replace(folder_of(dataset) / PACKS_NAME)
    with pytest.raises(DatasetError, match=r"packs\.parquet is damaged: its hash is not the manifest's"):
        read_sidecar(dataset)


@pytest.mark.parametrize(
    ("column", "row", "change", "message"),
    [
        ("shard", 3, -1, r"does not have the packs of index\.json"),
        ("offset", 1, 1, r"pack 0 ends at byte \d+, expected \d+"),
        ("bytes", 6, -1, r"pack 6 ends at byte \d+, expected \d+"),
    ],
)
def test_a_sidecar_that_contradicts_the_index_is_refused(
    dataset: Dataset, column: str, row: int, change: int, message: str
) -> None:
    path = folder_of(dataset) / PACKS_NAME
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[row] += change
    position = table.column_names.index(column)
    pq.write_table(
        table.set_column(position, table.schema.field(column), pa.array(values, table.schema.field(column).type)), path
    )
    entry = {"bytes": path.stat().st_size, "xxh3": xxhash.xxh3_64_hexdigest(path.read_bytes())}
    manifest = replace(dataset.manifest, files={**dataset.manifest.files, PACKS_NAME: entry})
    with pytest.raises(DatasetError, match=message):
        read_sidecar(replace(dataset, manifest=manifest))


def test_a_reader_is_pickled_without_its_open_files(dataset: Dataset, packs: list[Pack]) -> None:
    reader, sidecar = PackReader([dataset]), read_sidecar(dataset)
    reader.read(sidecar.place(0))
    copy = pickle.loads(pickle.dumps(reader))
    reader.close()
    assert_equal(copy.read(sidecar.place(0)), packs[0])
    assert_equal(reader.read(sidecar.place(6)), packs[6])
    copy.close()
    reader.close()


def test_few_files_are_open_at_a_time_and_none_after_close(
    dataset: Dataset, packs: list[Pack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_MAX_OPEN_FILES", 1)
    before = open_files()
    reader, sidecar = PackReader([dataset]), read_sidecar(dataset)
    for i in (0, 6, 1, 5, 2):
        assert_equal(reader.read(sidecar.place(i)), packs[i])
    assert open_files() <= before + 1
    reader.close()
    assert open_files() == before


def test_reading_packs_needs_no_torch() -> None:
    code = "import sys, lmms.train.data.shards; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
