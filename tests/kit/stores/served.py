"""A small data set behind a web server, for tests of reading from far away."""

from dataclasses import fields
from pathlib import Path

import numpy as np

from lmms.configs.contract.manifest import Dataset
from lmms.configs.contract.model_folder import ModelFolder
from lmms.configs.contract.pack import Pack
from lmms.train.data.shards import PackReader, read_sidecar
from tests.kit.shards import make_pack, write_shards

MODEL = ModelFolder(
    path=Path("model"),
    family="qwen2",
    tokenizer_json=Path("model/tokenizer.json"),
    chat_template="",
    special_tokens={},
    vision=None,
    image_token_id=None,
    tokenizer_fingerprint="test",
)


def served_packs() -> list[Pack]:
    """Eight packs of text."""
    rng = np.random.default_rng(0)
    return [make_pack(rng, rng.integers(400, 3000, 4).tolist(), 99) for _ in range(8)]


def served_folder(folder: Path, packs: list[Pack]) -> Path:
    """The folder that is to be served; in it, in `shards`, packs 0 to 3 and 4 to 7 are a shard each."""
    folder.mkdir()
    write_shards(folder / "shards", packs, MODEL, seq_len=2**16)
    return folder


def shard_path(root: Path, number: int) -> Path:
    return root / "shards" / f"shard.{number:05}.mds"


def requests(root: Path) -> list[str]:
    """The files that the server was asked for since the last call."""
    log = root / "requests"
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def all_packs(dataset: Dataset) -> list[Pack]:
    sidecar, reader = read_sidecar(dataset), PackReader([dataset])
    found = [reader.read(sidecar.place(i)) for i in range(len(sidecar))]
    reader.close()
    return found


def same(one: Pack, other: Pack) -> bool:
    return all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(Pack))


def all_same(found: list[Pack], written: list[Pack]) -> bool:
    return len(found) == len(written) and all(map(same, found, written))
