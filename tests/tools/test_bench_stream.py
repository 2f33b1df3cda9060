"""tools/bench/stream.py on a small data set: what it measures is there, and a way that reads too little is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lmms.configs.load import to_yaml
from tests.kit.runs import run_config, write_run
from tools.bench.first_batch import GLOBAL_PACKS
from tools.bench.reading import Way, speeds
from tools.faults.page import ROOT


def test_every_way_to_read_the_first_batches_and_a_run_are_measured(tmp_path: Path) -> None:
    settings = write_run(tmp_path, "qwen3_vl")
    config = tmp_path / "run.yaml"
    config.write_text(to_yaml(run_config(settings)))
    few = ["--packs", str(16 * GLOBAL_PACKS), "--num-shards", "8", "--rounds", "1", "--seconds", "0", "--workers", "1"]
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "tools.bench.stream", settings["data.shards"], "--run", config, "--steps", "3"]
    subprocess.run([*command, "--out", out, *few], cwd=ROOT, check=True, timeout=900)
    measured = json.loads(out.read_text())
    (ways,) = measured["reading"].values()
    assert len(ways) == 6
    assert all(way["packs_per_s"] > 0 and way["rounds"] >= 3 for way in ways)
    start = measured["first_batch"]
    assert [start[at][0]["position"] for at in ("fresh", "resumed")] == [0, 8 * GLOBAL_PACKS]
    assert start["fresh"][0]["pack"] != start["resumed"][0]["pack"]
    assert 0 < start["fresh"][0]["opening_s"] < start["fresh"][0]["seconds"]
    assert measured["run"]["steps"] == 3
    assert 0 <= measured["run"]["data_wait"] < 1


def test_a_way_that_gives_less_than_all_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Path(write_run(tmp_path, "qwen3")["data.shards"])
    monkeypatch.setattr("tools.bench.reading._ways", lambda *_: [Way("lazy", lambda passes: (1.0, passes), 2)])
    with pytest.raises(RuntimeError, match="lazy gave 1 bytes or tokens, expected 1 x 2"):
        speeds(shards, 0, [])
