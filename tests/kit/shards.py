"""Shard folders made straight from the contract, for tests of the training side alone."""

import io
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from PIL import Image

from lmms.configs.contract.geometry import Vision, grid_patches, grid_tokens, image_grid
from lmms.configs.contract.loss_weight import total_weights
from lmms.configs.contract.manifest import PACKS_NAME, REJECTS_NAME, SAMPLES_NAME, Manifest, file_entry, write_manifest
from lmms.configs.contract.mds import INDEX_NAME, ShardFile, encode_sample, index_json, shard_header
from lmms.configs.contract.model_folder import ModelFolder
from lmms.configs.contract.pack import COLUMNS, CONTRACT_VERSION, PACK_TABLE, REJECT_TABLE, SAMPLE_TABLE, Media, Pack

_ARROW = {
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "float64": pa.float64(),
    "string": pa.string(),
    "list<int32>": pa.list_(pa.int32()),
}

PICTURE_VISION = Vision(
    patch_size=14,
    merge_size=2,
    temporal_patch_size=2,
    min_pixels=28 * 28,
    max_pixels=280 * 280,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
PICTURE_MODEL = ModelFolder(
    path=Path("model"),
    family="qwen2_5_vl",
    tokenizer_json=Path("model/tokenizer.json"),
    chat_template="",
    special_tokens={},
    vision=PICTURE_VISION,
    image_token_id=99,
    tokenizer_fingerprint="test",
)


def make_pack(
    rng: np.random.Generator, lengths: Sequence[int], vocab: int, images: int = 0, model: ModelFolder | None = None
) -> Pack:
    """Conversations of random tokens below `vocab`, the second half of each predicted; the first one shows `images`
    small pictures of noise (then `model` gives token and geometry)."""
    media, data, shown = [], b"", [np.zeros(0, np.int32)]
    position = 1
    for _ in range(images):
        assert model is not None
        assert model.vision is not None
        entry, encoded = _picture(rng, model.vision, position)
        media.append(entry)
        data += encoded
        shown += [np.full(entry.end - entry.start, model.image_token_id, np.int32), _tokens(rng, 1, vocab)]
        position = entry.end + 1
    placeholders = np.concatenate(shown)
    lengths = [lengths[0] + len(placeholders), *lengths[1:]]
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    input_ids = _tokens(rng, int(cu_seqlens[-1]), vocab)
    input_ids[1 : 1 + len(placeholders)] = placeholders
    starts = [max(start + (end - start) // 2, 1) for start, end in pairwise(cu_seqlens.tolist())]
    starts[0] = max(starts[0], position)
    return Pack(
        input_ids=input_ids,
        cu_seqlens=cu_seqlens,
        targets=np.stack([starts, cu_seqlens[1:]], axis=1).astype(np.int32),
        target_weights=rng.choice(np.array([0.5, 1.0, 2.0]), len(lengths)),
        sample_weights=np.ones(len(lengths)),
        samples=np.stack([np.zeros(len(lengths)), rng.integers(0, 1000, len(lengths))], axis=1).astype(np.int64),
        media=tuple(media),
        media_bytes=data,
    )


def picture_packs() -> list[Pack]:
    """Seven packs of one to three conversations; every second one has pictures."""
    rng = np.random.default_rng(0)
    lengths = [rng.integers(4, 30, 1 + i % 3).tolist() for i in range(7)]
    return [make_pack(rng, length, 99, images=2 * (i % 2), model=PICTURE_MODEL) for i, length in enumerate(lengths)]


def write_shards(
    folder: Path, packs: Sequence[Pack], model: ModelFolder, seq_len: int, sources: Sequence[str] = ("made.jsonl",)
) -> Path:
    """A complete shard folder of these packs of these sources, two shards where there are two packs or more."""
    folder.mkdir(parents=True)
    half = max(len(packs) // 2, 1)
    rows: list[dict[str, object]] = []
    shards = []
    for number, part in enumerate(part for part in (packs[:half], packs[half:]) if part):
        samples = [encode_sample(COLUMNS, pack.to_columns()) for pack in part]
        header = shard_header(COLUMNS, [len(sample) for sample in samples])
        body = header + b"".join(samples)
        name = f"shard.{number:05d}.mds"
        (folder / name).write_bytes(body)
        shards.append(ShardFile(name, len(body), len(part), xxhash.xxh3_64_hexdigest(body), tuple(COLUMNS.items())))
        offsets = len(header) + np.cumsum([0, *(len(sample) for sample in samples[:-1])])
        rows += [_pack_row(number, *entry) for entry in zip(offsets.tolist(), samples, part, strict=True)]
    (folder / INDEX_NAME).write_bytes(index_json(COLUMNS, shards))
    _write_table(folder / PACKS_NAME, PACK_TABLE, rows)
    _write_table(folder / SAMPLES_NAME, SAMPLE_TABLE, [])
    _write_table(folder / REJECTS_NAME, REJECT_TABLE, [])
    manifest = _manifest(folder, packs, model, seq_len)
    of_all = manifest.sources[0]
    write_manifest(replace(manifest, sources=tuple({**of_all, "name": name} for name in sources)), folder)
    return folder


def _tokens(rng: np.random.Generator, count: int, vocab: int) -> np.ndarray:
    return rng.integers(0, vocab, count).astype(np.int32)


def _picture(rng: np.random.Generator, vision: Vision, start: int) -> tuple[Media, bytes]:
    width, height = (int(side) * vision.factor for side in rng.integers(2, 4, 2))
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(file, "PNG")
    grid = image_grid(height, width, vision)
    end = start + grid_tokens(grid, vision.merge_size)
    data = file.getvalue()
    return Media("image", start, end, (width, height), grid, len(data)), data


def _pack_row(shard: int, offset: int, sample: bytes, pack: Pack) -> dict[str, object]:
    spans = pack.targets[:, 1] - pack.targets[:, 0]
    return {
        "shard": shard,
        "offset": offset,
        "bytes": len(sample),
        "xxh3": xxhash.xxh3_64_intdigest(sample),
        "tokens": len(pack.input_ids),
        "target_tokens": int(spans.sum()),
        **total_weights(pack),
        "segments": len(pack.lengths),
        "sum_squared_lengths": int((pack.lengths.astype(np.int64) ** 2).sum()),
        "patches": pack.patches,
        "sum_squared_patches": pack.sum_squared_patches,
        "media": len(pack.media),
        "source_ids": [0],
        "source_tokens": [len(pack.input_ids)],
    }


def _write_table(path: Path, columns: dict[str, str], rows: Sequence[dict[str, object]]) -> None:
    schema = pa.schema([(name, _ARROW[kind]) for name, kind in columns.items()])
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)


def _manifest(folder: Path, packs: Sequence[Pack], model: ModelFolder, seq_len: int) -> Manifest:
    conversations = sum(len(pack.lengths) for pack in packs)
    tokens = sum(len(pack.input_ids) for pack in packs)
    counts = {"read": conversations, "packed": conversations, "rejected": 0, "skipped": 0, "packs": len(packs)}
    counts |= {"tokens": tokens, "target_tokens": sum(int(np.diff(p.targets).sum()) for p in packs)}
    counts |= {"media": sum(len(p.media) for p in packs), "patches": sum(p.patches for p in packs)}
    source = {"name": "made.jsonl", "read": conversations, "packed": conversations, "rejected": 0, "skipped": 0}
    return Manifest(
        contract=CONTRACT_VERSION,
        family=model.family,
        model=str(model.path),
        seq_len=seq_len,
        max_patches=max([1, *(grid_patches(m.grid_thw) for p in packs for m in p.media)]) * 8,
        image_token_id=model.image_token_id,
        vision=model.vision,
        packing="as given",
        fingerprints={**model.fingerprints, "renderer": "test", "records": "test"},
        counts=counts,
        rejects={},
        notes={},
        sources=({**source, "tokens": tokens},),
        settings={},
        files={name: file_entry(folder / name) for name in (INDEX_NAME, PACKS_NAME, SAMPLES_NAME, REJECTS_NAME)},
    )
