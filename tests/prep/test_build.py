"""The whole of prep on data of its own, with the tiny model of the package: counts, determinism, atomicity."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from lmms.configs.contract.check import check_pack
from lmms.configs.contract.costs import folder_cost
from lmms.configs.contract.manifest import open_dataset
from lmms.configs.errors import BuildError
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.train.data.costs import table_costs
from lmms.train.data.shards import PackReader, read_sidecar
from tests.kit.folders import shard_files, tiny_model_folder
from tests.kit.records import write_records

BYTES = {"shard.00000.mds": "b70bf52cbf76906e", "index.json": "521a3eb24e4d07f7"}
"""sha256 of files of a build of write_talks."""


def settings(tmp_path: Path, source: Path, out: str = "out", **more: Any) -> PrepConfig:
    values = {"seq_len": 512, "max_rejects": 0.05, "workers": 0, "shard_bytes": 2**20, **more}
    return PrepConfig(sources=(str(source),), model=str(tiny_model_folder(tmp_path)), out=str(tmp_path / out), **values)


def test_every_record_is_packed_rejected_or_skipped_and_found_again(tmp_path: Path) -> None:
    manifest = build_shards(settings(tmp_path, write_records(tmp_path / "data")))
    counts = manifest.counts
    assert counts["read"] == 301 == counts["packed"] + counts["rejected"] + counts["skipped"]
    assert (counts["rejected"], counts["skipped"]) == (6, 1)
    assert manifest.rejects == {"invalid_json": 6}
    dataset = open_dataset(tmp_path / "out")
    reader, sidecar = PackReader([dataset]), read_sidecar(dataset)
    samples = pl.read_parquet(tmp_path / "out" / "samples.parquet")
    rows = []
    for i in range(counts["packs"]):
        pack = reader.read(sidecar.place(i))
        assert check_pack(pack, manifest.limits) == []
        for segment, (source, row) in enumerate(pack.samples.tolist()):
            rows.append(row)
            entry = samples.row(by_predicate=pl.col("row") == row, named=True)
            assert (entry["source"], entry["pack"], entry["segment"]) == (source, i, segment)
            assert entry["tokens"] == pack.lengths[segment]
    rejects = pl.read_parquet(tmp_path / "out" / "rejects.parquet")["row"].to_list()
    assert sorted([*rows, *rejects, 10]) == list(range(301))


def test_no_process_is_started_without_work(tmp_path: Path) -> None:
    """600 records are two chunks and one shard; the second process starts only where the first is slow."""
    started = set[tuple[str, int]]()
    config = settings(tmp_path, write_talks(tmp_path / "talks.jsonl"), workers=4)
    build_shards(config, lambda progress: started.add((progress.stage, len(multiprocessing.active_children()))))
    assert started - {("reading", 1), ("reading", 2)} == {("reading", 0), ("planning", 0), ("writing", 0)}


def write_talks(path: Path, number: int = 600) -> Path:
    """Records of text of many lengths, the same in every run."""
    talks = [
        [
            {"role": "user", "content": "word " * (i * i % 97)},
            {"role": "assistant", "content": f"answer {i} " * (1 + i % 11)},
        ]
        for i in range(number)
    ]
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    return path


def test_a_tight_plan_gives_the_bytes_that_builds_had_before_there_was_another(tmp_path: Path) -> None:
    manifest = build_shards(settings(tmp_path, write_talks(tmp_path / "talks.jsonl"), plan="tight"))
    assert (manifest.packing, manifest.counts["packs"]) == ("bfd/1", 129)
    digests = {name: hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest()[:16] for name in BYTES}
    assert digests == BYTES


def test_packs_cost_alike_if_nothing_else_is_asked_for(tmp_path: Path) -> None:
    source = write_records(tmp_path / "data", 1300)
    spreads = {}
    for plan in ("balanced", "tight"):
        manifest = build_shards(settings(tmp_path, source, plan, plan=plan, more_packs=0.02))
        sidecar = read_sidecar(open_dataset(tmp_path / plan))
        cost = folder_cost(tmp_path / "model", {})
        totals = table_costs(cost, sidecar).sum(axis=0)
        spreads[plan] = (manifest.packing, manifest.counts["packs"], float(totals.std() / totals.mean()))
    assert (spreads["balanced"][0], spreads["tight"][0]) == ("balanced/1", "bfd/1")
    assert spreads["tight"][1] <= spreads["balanced"][1] <= spreads["tight"][1] * 1.02
    assert spreads["balanced"][2] < spreads["tight"][2] / 2
    assert PrepConfig(sources=("x",), model="m", seq_len=8, out="y").plan == "balanced"


def test_what_is_frozen_changes_what_a_balanced_plan_spreads(tmp_path: Path) -> None:
    source = write_records(tmp_path / "data", 1300)
    for name, cost_of in (("full", {}), ("frozen", {"vision": "frozen", "aligner": "frozen"})):
        build_shards(settings(tmp_path, source, name, cost_of=cost_of))
    plans = [pl.read_parquet(tmp_path / name / "samples.parquet")["pack"].to_list() for name in ("full", "frozen")]
    assert plans[0] != plans[1]


def test_the_same_input_gives_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    source = write_records(tmp_path / "data", 1300)
    build_shards(settings(tmp_path, source, "one"))
    build_shards(settings(tmp_path, source, "two", workers=2))
    one, two = shard_files(tmp_path / "one"), shard_files(tmp_path / "two")
    assert one == two
    assert len([name for name in one if name.endswith(".mds")]) > 1


def test_another_seed_gives_the_same_packs_in_another_order(tmp_path: Path) -> None:
    source = write_records(tmp_path / "data")
    first = build_shards(settings(tmp_path, source, "a", seed=1))
    second = build_shards(settings(tmp_path, source, "b", seed=2))
    a, b = (pl.read_parquet(tmp_path / name / "packs.parquet") for name in "ab")
    assert first.counts == second.counts
    assert a["tokens"].to_list() != b["tokens"].to_list()
    assert sorted(a["xxh3"]) != []
    assert sorted(a["xxh3"]) == sorted(b["xxh3"])


def test_an_output_that_exists_is_left_alone(tmp_path: Path) -> None:
    source = write_records(tmp_path / "data")
    (tmp_path / "out").mkdir()
    with pytest.raises(BuildError, match="exists"):
        build_shards(settings(tmp_path, source))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failed_build_leaves_nothing_at_the_output(tmp_path: Path) -> None:
    source = write_records(tmp_path / "data")
    with pytest.raises(BuildError, match="max-rejects"):
        build_shards(settings(tmp_path, source, max_rejects=0.001))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("data", "model", "out.lmms-store", "out.rejects.parquet"),
    ]


def test_a_killed_build_is_not_there_and_another_one_takes_its_place(tmp_path: Path) -> None:
    source = write_records(tmp_path / "data", 20_000)
    tiny_model_folder(tmp_path)
    script = (
        "import sys; from lmms.configs.settings.prep import PrepConfig; from lmms.prep.build import build_shards;"
        "build_shards(PrepConfig(sources=(sys.argv[1],), model=sys.argv[2], out=sys.argv[3], seq_len=512,"
        "max_rejects=0.05, workers=0))"
    )
    arguments = [str(source), str(tmp_path / "model"), str(tmp_path / "out")]
    build = subprocess.Popen([sys.executable, "-c", script, *arguments])
    deadline = time.monotonic() + 600
    while not list((tmp_path / "out.lmms-part" / "spool").glob("*.samples")) and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(BuildError, match="another process is writing"):
        build_shards(settings(tmp_path, source))
    os.kill(build.pid, signal.SIGKILL)
    build.wait()
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.lmms-part").exists()
    small = tmp_path / "data" / "small.jsonl"
    small.write_text("".join(source.read_text().splitlines(keepends=True)[:100]))
    build_shards(settings(tmp_path, small))
    assert open_dataset(tmp_path / "out").manifest.counts["read"] == 100
    assert not (tmp_path / "out.lmms-part").exists()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # LocalDataset leaves index.json open
def test_the_library_of_the_format_reads_every_column_of_a_build(tmp_path: Path) -> None:
    import streaming

    build_shards(settings(tmp_path, write_records(tmp_path / "data")))
    dataset = open_dataset(tmp_path / "out")
    reader, sidecar = PackReader([dataset]), read_sidecar(dataset)
    theirs = streaming.LocalDataset(str(tmp_path / "out"))
    assert len(theirs) == dataset.manifest.counts["packs"]
    for i in range(len(theirs)):
        columns = reader.read(sidecar.place(i)).to_columns()
        assert set(theirs[i]) == set(columns)
        for name, value in columns.items():
            assert np.array_equal(theirs[i][name], value) if isinstance(value, np.ndarray) else theirs[i][name] == value


def test_a_folder_of_the_users_beside_the_output_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "mine.txt").write_text("mine")
    build_shards(settings(tmp_path, write_records(tmp_path / "data")))
    assert (tmp_path / "out.part" / "mine.txt").read_text() == "mine"


def test_sources_without_a_record_are_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(BuildError, match=r"no records in .*empty\.jsonl"):
        build_shards(settings(tmp_path, tmp_path / "empty.jsonl"))


def test_the_ledger_of_a_build_that_stopped_does_not_stay_beside_a_later_build(tmp_path: Path) -> None:
    source, ledger = write_records(tmp_path / "data"), tmp_path / "out.rejects.parquet"
    with pytest.raises(BuildError):
        build_shards(settings(tmp_path, source, max_rejects=0.001))
    assert ledger.exists()
    build_shards(settings(tmp_path, source, out="other"))
    assert ledger.exists()
    build_shards(settings(tmp_path, source))
    assert not ledger.exists()


def test_the_manifest_of_the_records_for_evaluation_is_read_as_the_docstring_says(tmp_path: Path) -> None:
    config = settings(tmp_path, write_records(tmp_path / "data"), eval_share=0.2)
    manifest = build_shards(config)
    assert "open_dataset(config.eval_place).manifest" in (build_shards.__doc__ or "")
    held_out = open_dataset(config.eval_place).manifest
    assert held_out.counts["packed"] == manifest.notes["skipped: evaluation"] > 0
