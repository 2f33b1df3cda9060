"""A shard folder is complete or it is refused, and the message names the file that is wrong."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import xxhash

from lmms.configs.contract import mds
from lmms.configs.contract.check import PackLimits
from lmms.configs.contract.manifest import (
    TABLE_NAMES,
    Manifest,
    file_entry,
    open_dataset,
    read_manifest,
    write_manifest,
)
from lmms.configs.contract.media.geometry import Vision
from lmms.configs.contract.pack import COLUMNS, CONTRACT_VERSION, Pack
from lmms.configs.errors import DatasetError
from lmms.configs.stores.store import LocalStore

VISION = Vision(
    patch_size=14,
    merge_size=2,
    temporal_patch_size=2,
    min_pixels=3136,
    max_pixels=10**6,
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.5, 0.5, 0.5),
)


def make_manifest(folder: Path) -> Manifest:
    return Manifest(
        contract=CONTRACT_VERSION,
        family="qwen2_vl",
        model="Qwen/Qwen2-VL-2B-Instruct",
        seq_len=512,
        max_patches=2048,
        image_token_id=99,
        vision=VISION,
        packing="bfd-1",
        fingerprints={"tokenizer": "a", "template": "b"},
        counts={"read": 5, "packed": 3, "rejected": 2, "skipped": 0},
        rejects={"no messages": 2},
        notes={},
        sources=({"name": "données.jsonl", "read": 5},),
        settings={"seed": 0, "max_rejects": 0.01, "sources": ["données.jsonl"]},
        files={name: file_entry(folder / name) for name in (mds.INDEX_NAME, *TABLE_NAMES)},
    )


def write_index(folder: Path, columns: dict[str, str]) -> None:
    data = (folder / "shard.00000.mds").read_bytes()
    shard = mds.ShardFile("shard.00000.mds", len(data), 2, xxhash.xxh3_64_hexdigest(data), ())
    (folder / mds.INDEX_NAME).write_bytes(mds.index_json(columns, [shard]))


@pytest.fixture
def folder(tmp_path: Path, image_pack: Pack, text_pack: Pack) -> Path:
    """A complete shard folder."""
    samples = [mds.encode_sample(COLUMNS, pack.to_columns()) for pack in (image_pack, text_pack)]
    data = mds.shard_header(COLUMNS, [len(sample) for sample in samples]) + b"".join(samples)
    (tmp_path / "shard.00000.mds").write_bytes(data)
    for name in TABLE_NAMES:
        (tmp_path / name).write_bytes(b"PAR1 " + name.encode())
    write_index(tmp_path, dict(COLUMNS))
    write_manifest(make_manifest(tmp_path), tmp_path)
    return tmp_path


def test_a_complete_folder_opens_with_what_was_written(folder: Path) -> None:
    dataset = open_dataset(folder)
    assert dataset.manifest == make_manifest(folder)
    assert [(shard.name, shard.samples) for shard in dataset.shards] == [("shard.00000.mds", 2)]
    assert dataset.where == str(folder)


def test_limits_are_the_manifests(folder: Path) -> None:
    manifest = make_manifest(folder)
    assert manifest.limits == PackLimits(seq_len=512, max_patches=2048, image_token_id=99, merge_size=2)
    assert replace(manifest, vision=None, image_token_id=None).limits.merge_size == 1


def test_a_text_manifest_round_trips(folder: Path) -> None:
    manifest = replace(make_manifest(folder), vision=None, image_token_id=None)
    write_manifest(manifest, folder)
    assert read_manifest(LocalStore(folder)) == manifest


def test_the_same_manifest_is_the_same_bytes_and_leaves_nothing_beside_it(folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    write_manifest(make_manifest(folder), folder)
    assert (folder / "manifest.json").read_bytes() == before
    assert not list(folder.glob("*.part"))


def test_the_manifest_is_not_there_when_its_writing_fails(tmp_path: Path, folder: Path) -> None:
    """A value that JSON cannot hold stops the write before the name manifest.json exists."""
    (folder / "manifest.json").unlink()
    with pytest.raises(TypeError):
        write_manifest(replace(make_manifest(folder), settings={"out": tmp_path}), folder)
    assert not (folder / "manifest.json").exists()


def refused(folder: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        open_dataset(folder)
    return str(caught.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'} is not a folder" in refused(tmp_path / "none")


def test_a_build_that_did_not_finish_is_refused(folder: Path) -> None:
    (folder / "manifest.json").rename(folder / "manifest.json.part")
    assert f"{folder / 'manifest.json'} is missing: the build or its copy did not finish" in refused(folder)


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_truncated_manifest_is_refused(share: float, folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert f"{path} is damaged" in refused(folder)


def test_no_flipped_bit_of_the_manifest_goes_unseen(folder: Path) -> None:
    path = folder / "manifest.json"
    good = path.read_bytes()
    for place in range(len(good) - 1):  # the last byte is the newline at the end of the file
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(DatasetError, match=r"manifest\.json"):
            read_manifest(LocalStore(folder))


def test_half_of_a_surrogate_pair_in_a_manifest_is_damage(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"packing": "', '"packing": "\\ud800', 1))
    assert f"{path} is damaged" in refused(folder)


@pytest.mark.parametrize("content", [b"[]", b"7", b'"text"', b"null", b"{}", b"\xff", b"[" * 100_000])
def test_json_that_is_no_manifest_is_refused(content: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(content)
    assert f"{folder / 'manifest.json'} is damaged" in refused(folder)


def test_another_contract_version_is_refused(folder: Path) -> None:
    write_manifest(replace(make_manifest(folder), contract=CONTRACT_VERSION + 1), folder)
    assert f"contract {CONTRACT_VERSION + 1}, this lmms reads {CONTRACT_VERSION}" in refused(folder)


def test_a_manifest_with_an_unknown_field_is_refused(folder: Path) -> None:
    body = {**asdict(make_manifest(folder)), "extra": 1}
    text = json.dumps(body, sort_keys=True, ensure_ascii=False)
    body["checksum"] = xxhash.xxh3_64_hexdigest(text.encode())
    (folder / "manifest.json").write_text(json.dumps(body), encoding="utf-8")
    assert "manifest.json" in refused(folder)


FILES = ("shard.00000.mds", mds.INDEX_NAME, *TABLE_NAMES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated or changed"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "truncated or changed"),
    ],
    ids=["missing", "short", "long"],
)
def test_a_file_that_is_missing_or_of_another_size_is_named(
    name: str, damage: Callable[[Path], object], message: str, folder: Path
) -> None:
    damage(folder / name)
    found = refused(folder)
    assert found.startswith(f"{folder / name} ")
    assert message in found


def test_a_changed_index_of_the_same_size_is_refused(folder: Path) -> None:
    path = folder / mds.INDEX_NAME
    path.write_bytes(path.read_bytes().replace(b'"samples": 2', b'"samples": 3'))
    assert f"{path} is damaged: its hash is not the manifest's" in refused(folder)


def test_shards_with_other_columns_are_refused(folder: Path) -> None:
    write_index(folder, {**COLUMNS, "input_ids": "ndarray:int64"})
    write_manifest(make_manifest(folder), folder)
    found = refused(folder)
    assert found.startswith(f"{folder / 'shard.00000.mds'}: columns ")
    assert "input_ids ndarray:int64" in found
