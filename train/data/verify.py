"""Everything that a shard folder promises, checked: every hash, every pack against the contract, every table row."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from lmms.configs.contract.check import check_pack
from lmms.configs.contract.manifest import PACKS_NAME, REJECTS_NAME, SAMPLES_NAME, Dataset, data_entry, open_dataset
from lmms.configs.contract.pack import SAMPLE_TABLE, SOUND_TABLE, Pack, first_samples
from lmms.configs.contract.sidecar import pack_row
from lmms.configs.errors import DatasetError
from lmms.configs.stores.store import read_blocks
from lmms.train.data.shards import PackReader, Sidecar, read_sidecar, read_table


def verify(where: str | Path, report: Callable[[int, int], None] = lambda done, packs: None) -> Iterator[str]:
    """Every fault of a shard folder, as a sentence that names the place; none when the folder is whole.

    `report` is called with the packs read so far and their number. A folder without a readable manifest, index or
    sidecar raises DatasetError, as for any other reader.
    """
    dataset = open_dataset(where)
    yield from _file_faults(dataset)
    sidecar = read_sidecar(dataset)
    table = read_table(dataset, SAMPLES_NAME)
    samples = {name: table[name].to_numpy() for name in SAMPLE_TABLE}
    yield from _count_faults(dataset, sidecar, samples)
    yield from _pack_faults(dataset, sidecar, samples, report)


def _file_faults(dataset: Dataset) -> Iterator[str]:
    for name, entry in dataset.manifest.files.items():
        if data_entry(dataset.store.read(name)) != entry:
            yield f"{dataset.where}/{name}: its hash is not the manifest's"
    for shard in dataset.shards:
        digest = xxhash.xxh3_64()
        for block in read_blocks(dataset.store, shard.name, shard.bytes):
            digest.update(block)
        if digest.hexdigest() != shard.xxh3:
            yield f"{dataset.where}/{shard.name}: its hash is not the index's"


def _count_faults(dataset: Dataset, sidecar: Sidecar, samples: dict[str, Any]) -> Iterator[str]:
    rejects = read_table(dataset, REJECTS_NAME).height
    counted = {
        "packs": len(sidecar),
        "packed": int(first_samples(samples["source"], samples["row"]).sum()),
        "samples": int((samples["tokens"] > 0).sum()),
        "rejected": rejects,
        "tokens": int(sidecar.tokens.sum()),
        "target_tokens": int(sidecar.target_tokens.sum()),
        "media": int(sidecar.media.sum()),
        "patches": int(sidecar.patches.sum()),
    }
    counts = dataset.manifest.counts
    for name, number in counted.items():
        # Manifests of earlier versions do not count samples: each record was one.
        stated = counts["packed"] if name == "samples" and name not in counts else counts[name]
        if stated != number:
            yield f"{dataset.where}: {number} {name} in the tables, {stated} in the manifest"
    if counts["read"] != counts["packed"] + counts["rejected"] + counts["skipped"]:
        yield f"{dataset.where}: read is not packed + rejected + skipped in the manifest: {counts}"


def _pack_faults(
    dataset: Dataset, sidecar: Sidecar, samples: dict[str, Any], report: Callable[[int, int], None]
) -> Iterator[str]:
    reader, table = PackReader([dataset]), read_table(dataset, PACKS_NAME)
    by_pack = np.argsort(samples["pack"], kind="stable")
    starts = np.searchsorted(samples["pack"][by_pack], np.arange(len(sidecar) + 1))
    for i in range(len(sidecar)):
        place = f"{dataset.where}/{dataset.shards[sidecar.shard[i]].name}, pack {i}"
        try:
            pack = reader.read(sidecar.place(i))
        except DatasetError as error:
            yield str(error)
            continue
        yield from (f"{place}: {fault}" for fault in check_pack(pack, dataset.manifest.limits))
        rows = by_pack[starts[i] : starts[i + 1]]
        row, listed = table.row(i, named=True), {name: column[rows] for name, column in samples.items()}
        yield from (f"{place}: {fault}" for fault in _row_faults(pack, row, listed))
        report(i + 1, len(sidecar))
    reader.close()


def _row_faults(pack: Pack, row: Mapping[str, Any], samples: dict[str, Any]) -> Iterator[str]:
    """Each point at which the row of the sidecar or the rows of samples.parquet say other than the pack."""
    for name, value in pack_row(pack, SOUND_TABLE.keys() <= row.keys()).items():
        if row[name] != value:
            yield f"{PACKS_NAME} says {row[name]} {name}, the pack has {value}"
    is_joined = samples["tokens"] == 0
    if not np.isin(samples["segment"][is_joined], np.arange(len(pack.lengths))).all():
        yield f"{SAMPLES_NAME} names a conversation for a joined row that the pack lacks"
    samples = {name: column[~is_joined] for name, column in samples.items()}
    order = np.argsort(samples["segment"])
    stated = np.stack([samples[name][order] for name in ("source", "row", "tokens")], axis=1)
    actual = np.concatenate([pack.samples, pack.lengths[:, None]], axis=1)
    if not np.array_equal(samples["segment"][order], np.arange(len(pack.lengths))) or not np.array_equal(
        stated, actual
    ):
        yield f"{SAMPLES_NAME} does not list the conversations of the pack"
