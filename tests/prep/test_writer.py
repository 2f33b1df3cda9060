"""write_packs: a shard folder for packs that somebody else made, as `lmms prep` would write it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmms.configs.contract.manifest import PACKS_NAME, SAMPLES_NAME, open_dataset
from lmms.configs.contract.model_folder import ModelFolder, read_model_folder
from lmms.configs.contract.pack import Pack
from lmms.configs.errors import BuildError
from lmms.prep.writer import PackFacts, write_packs
from lmms.train.data.shards import PackReader, read_sidecar
from lmms.train.data.verify import verify
from tests.kit.folders import small_shards, tiny_model_folder
from tests.kit.shards import make_pack


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return read_model_folder(tiny_model_folder(tmp_path_factory.mktemp("model")))


def facts_of(model: ModelFolder, **more: Any) -> PackFacts:
    return PackFacts(model=model, **{"seq_len": 256, "max_patches": 4096, **more})


def packs_of(model: ModelFolder, number: int) -> list[Pack]:
    rng = np.random.default_rng(3)
    return [make_pack(rng, [20 + i, 31], 30, images=i % 2, model=model) for i in range(number)]


def test_a_folder_of_given_packs_is_whole_and_gives_them_back_in_order(model: ModelFolder, tmp_path: Path) -> None:
    packs = packs_of(model, 5)
    manifest = write_packs(tmp_path / "out", iter(packs), facts_of(model))
    assert list(verify(tmp_path / "out")) == []
    dataset = open_dataset(tmp_path / "out")
    assert dataset.manifest == manifest
    sidecar, reader = read_sidecar(dataset), PackReader([dataset])
    for i, pack in enumerate(packs):
        assert reader.read(sidecar.place(i)).input_ids.tolist() == pack.input_ids.tolist()
    reader.close()
    assert manifest.counts["packed"] == 10
    assert manifest.sources[0]["tokens"] == manifest.counts["tokens"] == sum(len(pack.input_ids) for pack in packs)


def test_the_packs_of_a_build_become_the_same_shards_and_tables(tmp_path: Path) -> None:
    built = small_shards(tmp_path)
    dataset = open_dataset(built)
    manifest, sidecar, reader = dataset.manifest, read_sidecar(dataset), PackReader([dataset])
    facts = PackFacts(
        model=read_model_folder(Path(manifest.model)),
        seq_len=manifest.seq_len,
        max_patches=manifest.max_patches,
        sources=[source["name"] for source in manifest.sources],
    )
    write_packs(tmp_path / "again", (reader.read(sidecar.place(i)) for i in range(len(sidecar))), facts)
    reader.close()
    shards = sorted(path.name for path in built.glob("*.mds"))
    for name in (*shards, "index.json", PACKS_NAME, SAMPLES_NAME):
        assert (tmp_path / "again" / name).read_bytes() == (built / name).read_bytes(), name


def test_a_shard_ends_at_the_pack_that_reaches_its_size(model: ModelFolder, tmp_path: Path) -> None:
    packs = packs_of(model, 6)
    write_packs(tmp_path / "out", packs, facts_of(model), shard_bytes=1)
    assert [shard.samples for shard in open_dataset(tmp_path / "out").shards] == [1] * 6
    assert list(verify(tmp_path / "out")) == []


def broken(packs: list[Pack]) -> Iterator[Pack]:
    yield packs[0]
    yield replace(packs[1], cu_seqlens=packs[1].cu_seqlens[:-1])


@pytest.mark.parametrize(
    ("packs", "message"),
    [
        (lambda packs: [], "no packs"),
        (broken, r"pack 1 of shard 0 breaks the contract: .*expected"),
        (
            lambda packs: [replace(packs[0], samples=packs[0].samples + np.array([[1, 0]]))],
            r"sources are \[1\], expected 0 to 0",
        ),
        (lambda packs: [replace(packs[0], input_ids=packs[0].input_ids.repeat(9))], "breaks the contract"),
    ],
)
def test_packs_that_are_none_leave_no_folder(packs: Any, message: str, model: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=message):
        write_packs(tmp_path / "out", packs(packs_of(model, 2)), facts_of(model))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(model: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(BuildError, match="exists"):
        write_packs(tmp_path / "out", packs_of(model, 1), facts_of(model))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("token", "fault"), [(-1, "holds -1, expected no"), (10**7, "holds 10000000, expected less")])
def test_a_token_that_the_model_does_not_have_is_refused(
    token: int, fault: str, model: ModelFolder, tmp_path: Path
) -> None:
    pack = packs_of(model, 1)[0]
    ids = pack.input_ids.copy()
    ids[5] = token
    with pytest.raises(BuildError, match=fault):
        write_packs(tmp_path / "out", [replace(pack, input_ids=ids)], facts_of(model))
