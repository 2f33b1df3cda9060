"""Reading packs: exact, checked, every fault by name, and the same through workers."""

import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import xxhash

from lmms.configs.contract import Pack
from lmms.configs.errors import DatasetError, TrainError
from lmms.configs.geometry import Vision
from lmms.configs.manifest import PACKS_NAME, Dataset, open_dataset
from lmms.configs.model_folder import ModelFolder
from lmms.train import stream
from lmms.train.batch import Batch, Recipe
from lmms.train.families.vision import Tower
from lmms.train.loader import batches
from lmms.train.stream import PackReader, read_sidecar
from tests.train.shards import make_pack, write_shards

VISION = Vision(
    patch_size=14,
    merge_size=2,
    temporal_patch_size=2,
    min_pixels=28 * 28,
    max_pixels=280 * 280,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
MODEL = ModelFolder(
    path=Path("model"),
    family="qwen2_5_vl",
    tokenizer_json=Path("model/tokenizer.json"),
    chat_template="",
    special_tokens={},
    vision=VISION,
    image_token_id=99,
    tokenizer_fingerprint="test",
)


@pytest.fixture(scope="module")
def packs() -> list[Pack]:
    """Seven packs of one to three conversations; every second one has pictures."""
    rng = np.random.default_rng(0)
    lengths = [rng.integers(4, 30, 1 + i % 3).tolist() for i in range(7)]
    return [make_pack(rng, length, 99, images=2 * (i % 2), model=MODEL) for i, length in enumerate(lengths)]


@pytest.fixture
def dataset(tmp_path: Path, packs: list[Pack]) -> Dataset:
    """The packs in two shards."""
    return open_dataset(write_shards(tmp_path / "shards", packs, MODEL, seq_len=4096))


def opened(dataset: Dataset) -> PackReader:
    return PackReader(dataset, read_sidecar(dataset))


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
    reader = opened(dataset)
    for i in (6, 0, 3, 2, 5, 1, 4, 0):
        assert_equal(reader.read(i), packs[i])
    assert any(pack.media for pack in packs)
    assert not all(pack.media for pack in packs)
    reader.close()


def test_sidecar_holds_every_column_of_the_table(dataset: Dataset, packs: list[Pack]) -> None:
    sidecar = read_sidecar(dataset)
    rows = pq.read_table(dataset.folder / PACKS_NAME).to_pylist()
    assert len(sidecar) == len(rows) == len(packs)
    for i, row in enumerate(rows):
        values = slice(sidecar.source_starts[i], sidecar.source_starts[i + 1])
        for name in ("source_ids", "source_tokens"):
            assert getattr(sidecar, name)[values].tolist() == row.pop(name)
        assert {name: getattr(sidecar, name)[i].item() for name in row} == row
    assert sidecar.xxh3.dtype == np.uint64
    assert sidecar.tokens.tolist() == [len(pack.input_ids) for pack in packs]


def test_a_flipped_byte_anywhere_in_a_pack_is_named(dataset: Dataset) -> None:
    sidecar = read_sidecar(dataset)
    shard = dataset.folder / dataset.shards[1].name
    whole = shard.read_bytes()
    pack = 5
    start, size = int(sidecar.offset[pack]), int(sidecar.bytes[pack])
    for place in [*range(start, start + 60), *range(start + 60, start + size, 97), start + size - 1]:
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        reader = PackReader(open_dataset(dataset.folder), sidecar)
        with pytest.raises(DatasetError, match=rf"{shard.name}: pack 5 at byte {start} is damaged.*copy"):
            reader.read(pack)
        reader.read(4)
        reader.close()


@pytest.mark.parametrize("missing", [1, 100, 10**9])
def test_a_shard_cut_off_while_it_is_read_is_named(dataset: Dataset, missing: int) -> None:
    shard = dataset.folder / dataset.shards[1].name
    reader = opened(dataset)
    os.truncate(shard, max(dataset.shards[1].bytes - missing, 0))
    with pytest.raises(DatasetError, match=rf"{shard.name}: pack 6 .* has \d+ bytes, expected \d+: truncated"):
        reader.read(6)
    reader.close()


def test_a_missing_shard_is_named_and_the_others_are_read(dataset: Dataset) -> None:
    reader = opened(dataset)
    (dataset.folder / dataset.shards[1].name).unlink()
    reader.read(0)
    for _ in range(2):
        with pytest.raises(DatasetError, match=rf"{dataset.shards[1].name}: pack 6 .*No such file.*copy the shard"):
            reader.read(6)
    reader.close()


@pytest.mark.parametrize("pack", [-1, 7])
def test_a_pack_that_does_not_exist_is_refused(dataset: Dataset, pack: int) -> None:
    with pytest.raises(DatasetError, match=f"no pack {pack}; expected 0 to 6"):
        opened(dataset).read(pack)


def test_a_sidecar_of_other_shards_is_refused(dataset: Dataset, packs: list[Pack], tmp_path: Path) -> None:
    other = write_shards(tmp_path / "other", packs[::-1], MODEL, seq_len=4096)
    (other / PACKS_NAME).replace(dataset.folder / PACKS_NAME)
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
    path = dataset.folder / PACKS_NAME
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
    reader = opened(dataset)
    reader.read(0)
    copy = pickle.loads(pickle.dumps(reader))
    reader.close()
    assert_equal(copy.read(0), packs[0])
    assert_equal(reader.read(6), packs[6])
    copy.close()
    reader.close()


def test_few_files_are_open_at_a_time_and_none_after_close(
    dataset: Dataset, packs: list[Pack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_MAX_OPEN_FILES", 1)
    before = open_files()
    reader = opened(dataset)
    for i in (0, 6, 1, 5, 2):
        assert_equal(reader.read(i), packs[i])
    assert open_files() <= before + 1
    reader.close()
    assert open_files() == before


def test_reading_packs_needs_no_torch() -> None:
    code = "import sys, lmms.train.stream; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def recipe_of(dataset: Dataset) -> Recipe:
    return Recipe(
        family=MODEL.family,
        vision=VISION,
        tower=Tower(patch_size=14, merge_size=2, window_size=112, position_side=0),
        limits=dataset.manifest.limits,
        vocab_size=100,
        sources=("made.jsonl",),
        on_bad_media="stop",
    )


def batches_of(dataset: Dataset, plan: Iterator[list[int]] | list[list[int]], workers: int) -> Iterator[Batch]:
    return batches(dataset, read_sidecar(dataset), recipe_of(dataset), plan, workers)


def content(batch: Batch) -> list[object]:
    tensors = [batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.labels, batch.weights]
    assert batch.vision is not None
    return [batch.packs, *(tensor.tolist() for tensor in (*tensors, batch.vision.patches, batch.vision.grid_thw))]


def test_batches_are_the_same_from_any_number_of_workers_and_leave_the_random_state(dataset: Dataset) -> None:
    plan = [[0, 3], [6], [1, 2, 5], [4], [3], [0]]
    expected = [content(batch) for batch in batches_of(dataset, plan, 0)]
    assert [packs for packs, *_ in expected] == [tuple(packs) for packs in plan]
    state = torch.get_rng_state()
    assert [content(batch) for batch in batches_of(dataset, iter(plan), 2)] == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_an_endless_plan_is_read_only_as_far_as_it_is_used(dataset: Dataset) -> None:
    asked: list[int] = []

    def plan() -> Iterator[list[int]]:
        for i in count():
            asked.append(i)
            yield [i % 7]

    loader = batches_of(dataset, plan(), 1)
    assert [batch.packs for batch in islice(loader, 10)] == [(i % 7,) for i in range(10)]
    del loader
    assert len(asked) < 20


@pytest.mark.parametrize("fault", ["shard", "image"])
def test_an_error_in_a_worker_is_the_error_that_the_trainer_would_have_had_itself(
    packs: list[Pack], tmp_path: Path, fault: str
) -> None:
    if fault == "image":
        damaged = packs[3].media_bytes[:100].ljust(len(packs[3].media_bytes), b"?")
        packs = [*packs[:3], replace(packs[3], media_bytes=damaged), *packs[4:]]
    dataset = open_dataset(write_shards(tmp_path / "shards", packs, MODEL, seq_len=4096))
    if fault == "shard":
        path = dataset.folder / dataset.shards[1].name
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    kind, pack = (TrainError, 3) if fault == "image" else (DatasetError, 6)
    messages = []
    for workers in (0, 1):
        made: list[Batch] = []
        with pytest.raises(kind, match=f"pack {pack}") as caught:
            made.extend(batches_of(dataset, [[0], [1], [pack], [2]], workers))
        assert len(made) == 2
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


class KilledByReading:
    """A plan's entry that kills the worker it is sent to."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return signal.raise_signal, (signal.SIGKILL,)


def test_a_killed_worker_stops_the_run(dataset: Dataset) -> None:
    with pytest.raises(TrainError, match=r"a loader process died \(.*lower data\.workers"):
        list(batches_of(dataset, [[0], [1], KilledByReading(), [2]], 1))  # type: ignore[list-item]


ENDLESS = """
import pickle, sys
from itertools import repeat
from lmms.train.loader import batches
loader = batches(*pickle.loads(sys.stdin.buffer.read()), repeat([0]), 1)
next(loader)
print("loading", flush=True)
for batch in loader: pass
"""


def test_workers_end_with_a_killed_trainer(dataset: Dataset) -> None:
    """They hold its output open: reading that ends when the last of them has ended."""
    command = [sys.executable, "-c", ENDLESS]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as trainer:
        assert trainer.stdin is not None
        assert trainer.stdout is not None
        trainer.stdin.write(pickle.dumps((dataset, read_sidecar(dataset), recipe_of(dataset))))
        trainer.stdin.close()
        assert trainer.stdout.readline() == b"loading\n"
        trainer.kill()
        assert select.select([trainer.stdout], [], [], 60) == ([trainer.stdout], [], [])
        assert trainer.stdout.read() == b""
