"""Which records a step trained on, held to the packs themselves; and what a rank reads."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash

from lmms.configs.contract.manifest import SAMPLES_NAME
from lmms.configs.errors import DatasetError, TrainError
from lmms.train.data.mixture import PERIOD
from lmms.train.data.order import by_cost, step_packs
from lmms.train.data.phases import SetShare, order_of, write_phases
from lmms.train.data.sets import Sets, open_sets
from lmms.train.data.shards import PackReader
from lmms.train.plan.preview import rank_reads
from lmms.train.run import train
from lmms.train.watch.metrics import METRICS_NAME
from lmms.train.watch.records import records_of
from tests.kit.folders import small_shards
from tests.kit.phases import first_phase
from tests.kit.runs import read_metrics, run_config, silent, write_run
from tests.kit.stores.servers import web_server


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(small_shards(tmp_path_factory.mktemp("set"), pictures)) for pictures in (20, 12)]


@pytest.fixture(scope="module")
def sets(places: list[str]) -> Sets:
    return open_sets(places)


@pytest.fixture
def run(places: list[str], sets: Sets, tmp_path: Path) -> Path:
    """The folder of a run of 3-pack steps on both sets, whose steps from the third on have 5 packs."""
    shares = tuple(
        SetShare(shards=place, index=dataset.index_hash, turns=PERIOD // 2, cursor=0)
        for place, dataset in zip(places, sets.datasets, strict=True)
    )
    first = first_phase(shares, global_packs=3, seed=4)
    cursors = (3, 3)
    moved = tuple(replace(share, cursor=cursor) for share, cursor in zip(shares, cursors, strict=True))
    write_phases(tmp_path, [first, replace(first, step=2, position=6, global_packs=5, sets=moved)])
    return tmp_path


def fmix64(x: int) -> int:
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = (x ^ (x >> 33)) * multiplier % 2**64
    return x ^ (x >> 33)


def log_digest(run: Path, step: int, digest: str) -> None:
    lines = [{"step": step - 1, "digest": "0" * 16}, {"step": step, "digest": digest}]
    (run / METRICS_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(("step", "position", "num_packs"), [(1, 0, 3), (2, 3, 3), (3, 6, 5), (9, 36, 5)])
def test_records_of_a_step_are_those_in_its_packs(
    step: int, position: int, num_packs: int, run: Path, sets: Sets
) -> None:
    """As the packs and as samples.parquet have them."""
    found = records_of(run, step)
    assert (found.position, found.packs, found.is_logged) == (position, num_packs, False)
    reader = PackReader(sets.datasets)
    places = list(dict.fromkeys((record.set, record.pack) for record in found.records))
    assert len(places) == num_packs
    digest = 0
    for k, number in places:
        place = sets.sidecars[k].place(number, k)
        digest += fmix64(xxhash.xxh3_64_intdigest(reader.read_bytes(place)))
        pack = reader.read(place)
        own = [record for record in found.records if (record.set, record.pack) == (k, number)]
        names = [source["name"] for source in sets.datasets[k].manifest.sources]
        assert [record.segment for record in own] == list(range(len(pack.lengths)))
        assert [record.tokens for record in own] == pack.lengths.tolist()
        assert [(record.source, record.row) for record in own] == [(names[s], row) for s, row in pack.samples.tolist()]
        table = pq.read_table(Path(sets.datasets[k].where) / SAMPLES_NAME, filters=[("pack", "=", number)])
        entries = sorted(table.to_pylist(), key=lambda entry: int(entry["segment"]))
        assert [(record.source, record.row, record.tokens) for record in own] == [
            (names[entry["source"]], entry["row"], entry["tokens"]) for entry in entries
        ]
    assert found.digest == f"{digest % 2**64:016x}"


def test_a_step_of_shards_far_away_costs_the_sidecar_and_its_packs(run: Path, places: list[str]) -> None:
    with web_server(Path(places[0]).parent) as (_, url):
        phases = json.loads((run / "phases.json").read_text())
        phases[0]["sets"][0]["shards"] = f"{url}/shards"
        (run / "phases.json").write_text(json.dumps(phases))
        asked = Path(places[0]).parent / "requests"
        assert any(record.set == 0 for record in records_of(run, 1).records)
        assert set(asked.read_text().split()) == {"manifest.json", "index.json", "packs.parquet", "shard.00000.mds"}


def test_the_first_steps_of_a_phase_go_on_where_the_last_one_ended(run: Path, sets: Sets) -> None:
    packs = [{(record.set, record.pack) for record in records_of(run, step).records} for step in (1, 2, 3)]
    assert len(set.union(*packs)) == 11


def test_a_digest_in_the_metrics_is_compared(run: Path) -> None:
    digest = records_of(run, 3).digest
    log_digest(run, 3, digest)
    assert records_of(run, 3).is_logged
    log_digest(run, 3, "0123456789abcdef")
    with pytest.raises(DatasetError, match=f"logged the digest 0123456789abcdef, these shards give {digest}"):
        records_of(run, 3)


def test_other_shards_than_those_trained_on_are_named(run: Path, places: list[str]) -> None:
    phases = json.loads((run / "phases.json").read_text())
    for phase in phases:
        for share, other in zip(phase["sets"], reversed(places), strict=True):
            share["shards"] = other
    (run / "phases.json").write_text(json.dumps(phases))
    with pytest.raises(DatasetError, match=r"is not what .* trained on: the hash of its index is"):
        records_of(run, 1)


def test_what_is_no_step_or_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="there is no step 0; expected 1 or more"):
        records_of(run, 0)
    with pytest.raises(TrainError, match=r"phases\.json is missing"):
        records_of(tmp_path / "none", 1)
    (run / METRICS_NAME).write_text('{"step": 1, "digest": "ab"}\n{"step": 2, "dig')
    with pytest.raises(TrainError, match=r"step 2 was not taken: .*metrics\.jsonl ends with step 1;"):
        records_of(run, 2)
    (run / METRICS_NAME).write_text('{"step": 1}\n')
    with pytest.raises(TrainError, match=r"metrics\.jsonl is damaged"):
        records_of(run, 1)


@pytest.mark.parametrize("family", ["qwen2", "qwen2_5_vl"])
def test_what_a_run_read_is_what_its_steps_are_said_to_hold(family: str, tmp_path: Path) -> None:
    config = run_config(write_run(tmp_path, family), max_steps=4)
    train(config, silent)
    for line in read_metrics(config.output):
        found = records_of(Path(config.output), line["step"])
        assert found.is_logged
        assert (found.digest, found.position + found.packs) == (line["digest"], line["position"])


def test_a_rank_reads_its_packs_and_those_that_keep_it_in_step(run: Path, sets: Sets) -> None:
    shares = [SetShare(shards="", index=d.index_hash, turns=PERIOD // 2, cursor=0) for d in sets.datasets]
    phase = first_phase(shares, global_packs=5)
    order = order_of(sets, phase)
    packs = by_cost(order, step_packs(order, 0))
    sizes = np.concatenate([sidecar.bytes for sidecar in sets.sidecars])
    whole = rank_reads(sets, packs, 0, 1, 2)
    assert (whole.packs, whole.shards, whole.bytes) == (5, 2, sizes[packs].sum())
    second = rank_reads(sets, packs, 1, 2, 1)
    assert (second.packs, second.bytes) == (3, sizes[packs[[1, 3, 4]]].sum())
