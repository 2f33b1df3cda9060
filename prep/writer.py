"""Packs -> a complete shard folder: shards, index, tables, and the manifest last. All shard folders are made here.

    facts = PackFacts(model=read_model_folder(Path("Qwen2.5-VL-3B-Instruct")), seq_len=4096, max_patches=16384)
    write_packs("shards", my_packs, facts)

is all that a user with ready tokens needs: `lmms train` and `lmms inspect` read the folder as any other.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.check import PackLimits, pack_limits
from lmms.configs.contract.manifest import (
    FETCHED_NAME,
    PACKS_NAME,
    REJECTS_NAME,
    SAMPLES_NAME,
    TABLE_NAMES,
    TEMPLATE_NAME,
    Manifest,
    file_entry,
    write_manifest,
)
from lmms.configs.contract.mds import INDEX_NAME, index_json
from lmms.configs.contract.model_folder import ModelFolder
from lmms.configs.contract.pack import (
    COLUMNS,
    CONTRACT_VERSION,
    FETCHED_TABLE,
    PACK_TABLE,
    REJECT_TABLE,
    SAMPLE_TABLE,
    SOUND_TABLE,
    Pack,
    first_samples,
)
from lmms.configs.errors import BuildError
from lmms.configs.stores.store import is_url
from lmms.prep.output import new_output
from lmms.prep.shards import WrittenShard, cut_shards, write_shard
from lmms.prep.tables import write_columns, write_rows

SHARD_BYTES = 128 * 2**20

Samples = Mapping[str, npt.NDArray[np.int32] | npt.NDArray[np.int64]]
"""Column of SAMPLE_TABLE -> its values, [samples]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackFacts:
    """Facts about all packs of a folder that are not stored in the packs."""

    model: ModelFolder
    """The model with the token ids and image geometry of the packs: see read_model_folder."""
    seq_len: int
    """Most tokens of a pack."""
    max_patches: int = 0
    """Most vision patches and positions of sounds of a pack; 0 for a model that reads text only."""
    sources: Sequence[str] = ("packs",)
    """Names of the sources of the conversations; the first column of Pack.samples counts them from 0."""
    model_name: str = ""
    """Name of the model in the manifest, where lmms later looks for the tokenizer; by default its folder."""
    packing: str = "given"
    """Name of the rule by which conversations share a pack."""
    renderer: str = "given"
    """Name and version of the renderer that made the token ids."""
    records: str = ""
    """Fingerprint of what was packed; by default the hash of the packs."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the user: JSON values."""
    video_decoder: str = ""
    """Name and version of the library that decoded the videos, if there are any."""
    audio_decoder: str = ""
    """The same for sounds."""

    @property
    def limits(self) -> PackLimits:
        """Limits of every pack."""
        model = self.model
        media = (model.vision, model.image_token_id, model.video_token_id, model.audio_token_id, model.audio)
        return replace(pack_limits(self.seq_len, self.max_patches, *media), vocab_size=model.vocab_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """What became of the records that were read."""

    sources: Sequence[Mapping[str, Any]]
    """{name, read, packed, rejected, skipped, tokens} of each source, in reading order."""
    rejects: Sequence[Mapping[str, Any]] = ()
    """Rows of REJECT_TABLE."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Manifest.notes."""
    fetched: Sequence[Mapping[str, Any]] = ()
    """Rows of FETCHED_TABLE."""


def write_packs(
    out: str | Path, packs: Iterable[Pack], facts: PackFacts, *, shard_bytes: int = SHARD_BYTES
) -> Manifest:
    """Write a shard folder of these packs, in this order. The folder is complete, or does not exist.

    out: the folder, which must not exist.
    packs: read once; about shard_bytes of them are held in memory.
    shard_bytes: size of a shard file at which the next file starts, up to 2 GiB.

    Raises BuildError for no packs at all, for a pack that breaks the contract (see check_pack) or has a source that
    facts does not name, and where `out` exists.
    """
    return write_shards(out, cut_shards(packs, _stored_bytes, shard_bytes), facts)


def write_shards(out: str | Path, shards: Iterable[Sequence[Pack]], facts: PackFacts) -> Manifest:
    """Write a shard folder as write_packs does, with the packs of each shard given."""
    written, tables, first = list[WrittenShard](), list[Samples](), 0
    if is_url(out):
        raise BuildError(f"{out}: expected a folder; `lmms prep build-shards` writes to URLs too")
    with new_output(str(out), Path(out)) as output:
        for number, packs in enumerate(shards):
            written.append(write_shard(number, packs, output, facts.limits))
            tables += [_samples(first + i, pack, len(facts.sources)) for i, pack in enumerate(packs)]
            first += len(packs)
        if not written:
            raise BuildError(f"{out}: there are no packs; expected at least one")
        joined = {name: np.concatenate([table[name] for table in tables]) for name in SAMPLE_TABLE}
        in_order = np.lexsort((joined["row"], joined["source"]))
        samples = {name: column[in_order] for name, column in joined.items()}
        return write_folder(output.folder, facts, written, samples, Account(sources=_sources(facts, samples)))


def write_folder(
    folder: Path, facts: PackFacts, written: Sequence[WrittenShard], samples: Samples, account: Account
) -> Manifest:
    """Write the files next to the shards: index.json, the tables, and manifest.json last.

    samples: a row for each packed conversation, in reading order.
    """
    rows = [row for shard in written for row in shard.rows]
    videos, sounds = sum(shard.videos for shard in written), sum(shard.sounds for shard in written)
    seconds = round(sum(shard.seconds for shard in written))
    numbers = {"videos": videos, "sounds": sounds, "sound_seconds": seconds}
    (folder / INDEX_NAME).write_bytes(index_json(COLUMNS, [shard.file for shard in written]))
    write_rows(folder / PACKS_NAME, {**PACK_TABLE, **(SOUND_TABLE if facts.model.audio else {})}, rows)
    write_columns(folder / SAMPLES_NAME, SAMPLE_TABLE, samples)
    write_rows(folder / REJECTS_NAME, REJECT_TABLE, account.rejects)
    names = [INDEX_NAME, *TABLE_NAMES]
    if account.fetched:
        write_rows(folder / FETCHED_NAME, FETCHED_TABLE, account.fetched)
        names.append(FETCHED_NAME)
    if not facts.model.own_template:
        (folder / TEMPLATE_NAME).write_bytes(facts.model.chat_template.encode())
        names.append(TEMPLATE_NAME)
    hashes = np.array([row["xxh3"] for row in rows], "<u8")
    records = facts.records or hashlib.sha256(hashes.tobytes()).hexdigest()
    manifest = Manifest(
        contract=CONTRACT_VERSION,
        family=facts.model.family,
        model=facts.model_name or str(facts.model.path),
        seq_len=facts.seq_len,
        max_patches=facts.max_patches,
        image_token_id=facts.model.image_token_id,
        video_token_id=facts.model.video_token_id,
        audio_token_id=facts.model.audio_token_id,
        audio=facts.model.audio,
        vision=facts.model.vision,
        packing=facts.packing,
        fingerprints={
            **facts.model.fingerprints,
            "renderer": facts.renderer,
            "records": records,
            **({"video_decoder": facts.video_decoder} if videos else {}),
            **({"audio_decoder": facts.audio_decoder} if sounds else {}),
        },
        counts=_counts(rows, account) | {name: number for name, number in numbers.items() if number},
        rejects=dict(Counter(reject["reason"] for reject in account.rejects).most_common()),
        notes=dict(account.notes),
        sources=tuple(dict(source) for source in account.sources),
        settings=dict(facts.settings),
        files={name: file_entry(folder / name) for name in names},
    )
    write_manifest(manifest, folder)
    return manifest


def _counts(rows: Sequence[Mapping[str, Any]], account: Account) -> dict[str, int]:
    totals = ("read", "rejected", "skipped", "packed", "samples")
    counts = {
        **{name: sum(source[name] for source in account.sources) for name in totals},
        "duplicates": sum(source.get("duplicates", 0) for source in account.sources),
        "packs": len(rows),
        **{name: sum(row[name] for row in rows) for name in ("tokens", "target_tokens", "media", "patches")},
    }
    segments = sum(row["segments"] for row in rows)
    if counts["read"] != counts["packed"] + counts["rejected"] + counts["skipped"] or counts["samples"] != segments:
        raise BuildError(f"the counts do not add up: {counts}, {segments} segments written. This is a bug of lmms")
    return counts


def _stored_bytes(pack: Pack) -> int:
    """About how many bytes a pack takes in a shard file."""
    return sum(value.nbytes for value in pack.to_columns().values() if isinstance(value, np.ndarray)) + len(
        pack.media_bytes
    )


def _samples(number: int, pack: Pack, sources: int) -> Samples:
    """The rows of samples.parquet of a pack. BuildError for a source that is not among the `sources` named ones."""
    source, row = pack.samples.T
    if ((source < 0) | (source >= sources)).any():
        raise BuildError(f"pack {number}: its sources are {sorted(set(source.tolist()))}, expected 0 to {sources - 1}")
    segments = len(pack.lengths)
    segment_of = np.searchsorted(pack.cu_seqlens, pack.targets[:, 0], side="right") - 1
    target_tokens = np.zeros(segments, np.int32)
    np.add.at(target_tokens, segment_of, np.diff(pack.targets)[:, 0])
    media = [pack.segment_of(m.start) for m in pack.media]
    return {
        "source": source.astype(np.int32),
        "row": row,
        "pack": np.full(segments, number),
        "segment": np.arange(segments, dtype=np.int32),
        "tokens": pack.lengths,
        "target_tokens": target_tokens,
        "media": np.bincount(np.array(media, np.int64), minlength=segments).astype(np.int32),
    }


def _sources(facts: PackFacts, samples: Samples) -> list[dict[str, Any]]:
    """The counts of each source where nothing was rejected."""
    count = len(facts.sources)
    is_first = first_samples(samples["source"], samples["row"])
    packed = np.bincount(samples["source"][is_first], minlength=count).tolist()
    pieces = np.bincount(samples["source"], minlength=count).tolist()
    tokens = np.zeros(len(facts.sources), np.int64)
    np.add.at(tokens, samples["source"], samples["tokens"])
    return [
        {"name": name, "read": r, "packed": r, "samples": s, "rejected": 0, "skipped": 0, "tokens": total}
        for name, r, s, total in zip(facts.sources, packed, pieces, tokens.tolist(), strict=True)
    ]
