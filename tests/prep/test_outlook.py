"""What a build would make is what the build makes; a share of the rows is a small picture of all."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmms.configs.errors import BuildError, ConfigError
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.prep.outlook import expected_waiting, look_ahead
from tests.kit.folders import tiny_model_folder
from tests.kit.records import write_records


def settings(folder: Path, **more: Any) -> PrepConfig:
    values = {"seq_len": 512, "max_rejects": 1.0, "workers": 0, "sources": (str(folder / "data"),), **more}
    return PrepConfig(model=str(tiny_model_folder(folder)), out=str(folder / "out"), **values)


@pytest.mark.parametrize("plan", ["balanced", "tight"])
def test_packs_rejects_and_bytes_are_those_of_the_build(tmp_path: Path, plan: str) -> None:
    write_records(tmp_path / "data")
    config = settings(tmp_path, plan=plan)
    outlook = look_ahead(config, [512])
    manifest = build_shards(config)
    (packing,) = (each for each in outlook.packings if each.plan == plan)
    assert packing.packs == manifest.counts["packs"]
    assert packing.fill == pytest.approx(manifest.fill)
    assert outlook.rejects == manifest.rejects
    assert (outlook.share, outlook.read) == (1.0, manifest.counts["read"])
    names = ("target_tokens", "media", "patches")
    assert [getattr(outlook, name) for name in names] == [manifest.counts[name] for name in names]
    assert int(outlook.lengths.sum()) == manifest.counts["tokens"]
    shards = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.mds"))
    assert outlook.bytes == pytest.approx(shards, rel=0.05)


def test_nothing_is_written(tmp_path: Path) -> None:
    write_records(tmp_path / "data", 60)
    config = settings(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    look_ahead(config, [256, 512])
    assert sorted(tmp_path.rglob("*")) == before


def test_samples_that_are_too_long_for_the_shorter_pack_are_counted(tmp_path: Path) -> None:
    write_records(tmp_path / "data")
    short, long = (look_ahead(settings(tmp_path), [96, 512]).packings[i] for i in (0, 2))
    assert (short.seq_len, long.seq_len, long.too_long) == (96, 512, 0)
    rejects = build_shards(settings(tmp_path, seq_len=96)).rejects
    assert short.too_long == rejects["too_long"]


def test_long_texts_are_cut_for_the_shorter_pack(tmp_path: Path) -> None:
    (tmp_path / "book.jsonl").write_text('{"text": "%s"}\n' % ("word " * 3000))
    config = settings(tmp_path, sources=(str(tmp_path / "book.jsonl"),))
    short, long = (look_ahead(config, [64, 1024]).packings[i] for i in (1, 3))
    assert short.too_long == long.too_long == 0
    assert short.packs == build_shards(replace(config, plan="tight", seq_len=64)).counts["packs"]


def test_a_share_of_the_rows_stands_for_all(tmp_path: Path) -> None:
    write_records(tmp_path / "data", 2000)
    whole, part = (look_ahead(settings(tmp_path), [512], share=share).packings[0] for share in (1.0, 0.25))
    assert part.packs == pytest.approx(whole.packs, rel=0.1)
    assert look_ahead(settings(tmp_path), [512], share=0.25).share == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("ranks", [1, 2, 8, 500])
def test_waiting_is_the_mean_of_what_drawn_packs_cost(ranks: int) -> None:
    draws = np.random.default_rng(0)
    costs = draws.gamma(4.0, size=300)
    drawn = draws.choice(costs, (4000, ranks)).max(axis=1).mean() / costs.mean() - 1
    assert expected_waiting(costs, ranks) == pytest.approx(drawn, abs=0.02)


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    write_records(tmp_path / "data", 60)
    with pytest.raises(ConfigError, match="share of rows to read is 0, expected more than 0"):
        look_ahead(settings(tmp_path), [512], share=0.0)
    with pytest.raises(BuildError, match=r"no record of the 61 that were read can be packed; rejected: too_long"):
        look_ahead(settings(tmp_path), [4])
