"""manifest.json: written last, so its presence means that the build is complete; read first, before any other file.

The manifest names the hash of every table and of index.json, index.json the hash of every shard, and the sidecar the
hash of every pack. `open_dataset` compares sizes (cheap, on every start); `lmms inspect verify` compares everything.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import xxhash

from lmms.configs.contract.check import PackLimits, pack_limits
from lmms.configs.contract.mds import INDEX_NAME, ShardFile, read_index
from lmms.configs.contract.media.geometry import Vision
from lmms.configs.contract.media.sounds import Audio
from lmms.configs.contract.pack import COLUMNS, CONTRACT_VERSION
from lmms.configs.errors import ConfigError, DatasetError
from lmms.configs.files import write_whole
from lmms.configs.stores.remote import missing
from lmms.configs.stores.store import Cache, LocalStore, Store, open_store

MANIFEST_NAME = "manifest.json"
PACKS_NAME, SAMPLES_NAME, REJECTS_NAME = "packs.parquet", "samples.parquet", "rejects.parquet"
FETCHED_NAME = "fetched.parquet"
TEMPLATE_NAME = "chat_template.jinja"
"""The chat template of the records, where the build was given another than the model's."""
TABLE_NAMES = (PACKS_NAME, SAMPLES_NAME, REJECTS_NAME)
NOT_READ = "not read: "
"""Begin of a note about files."""
SKIPPED = "skipped: "
"""Begin of a note about records that a setting leaves out."""


_LATER = {"video_token_id", "audio_token_id", "audio"}
"""Fields that older manifests lack; they are left out where they say nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Facts about a whole shard folder. Same input, same bytes: no times, no host, no number of workers."""

    contract: int
    family: str
    model: str
    seq_len: int
    max_patches: int
    image_token_id: int | None
    vision: Vision | None
    packing: str
    fingerprints: dict[str, str]
    """tokenizer, template, vision, audio: what the ids depend on; renderer: our version; records: what was read;
    video_decoder, audio_decoder: the library that decoded the videos or sounds, if there are any."""
    counts: dict[str, int]
    """read, packed, rejected, skipped (records); packs, tokens, target_tokens, media, patches; videos, if
    there are any, of which each row counts among the media; sounds and sound_seconds, if there are any."""
    rejects: dict[str, int]
    """reason -> records."""
    notes: dict[str, int]
    """Name of what was read but not used -> records: an unknown column, reasoning that the template leaves out. After
    NOT_READ: files in the user's folders that are no sources, and how many. After SKIPPED: a setting that leaves out
    records, or `evaluation`, whose records are in a folder of their own."""
    sources: tuple[dict[str, Any], ...]
    """{name, form, settings, read, packed, rejected, skipped, tokens, ...} of each source, in reading order.

    form: of its records. settings: those of the source itself."""
    settings: dict[str, Any]
    """The user's PrepConfig, without settings that do not change the result."""
    files: dict[str, dict[str, Any]]
    """name -> {bytes, xxh3} of index.json and the tables."""
    video_token_id: int | None = None
    """Id of the placeholder of videos; None for a model that reads none, and in a folder of an older lmms."""
    audio_token_id: int | None = None
    audio: Audio | None = None
    """None for a model that hears nothing."""

    @property
    def fill(self) -> float:
        """Share of the packs' token space that is filled."""
        return self.counts["tokens"] / (self.counts["packs"] * self.seq_len)

    @property
    def limits(self) -> PackLimits:
        """Limits of every pack of this folder."""
        return pack_limits(
            self.seq_len,
            self.max_patches,
            self.vision,
            self.image_token_id,
            self.video_token_id,
            self.audio_token_id,
            self.audio,
        )


@dataclass(frozen=True, slots=True)
class Dataset:
    """A shard folder that was found complete."""

    store: Store
    manifest: Manifest
    shards: tuple[ShardFile, ...]
    cache: Cache | None = None
    """Cache for the shards of a URL; None for a folder."""

    @property
    def where(self) -> str:
        """The folder or URL, for messages."""
        return self.store.where

    @property
    def index_hash(self) -> str:
        """Identity of a data set: the hash of the index, which names the hash of every shard."""
        return str(self.manifest.files[INDEX_NAME]["xxh3"])


def given_template(dataset: Dataset) -> str | None:
    """The chat template that a build was given in place of the model's; DatasetError for a damaged file."""
    entry = dataset.manifest.files.get(TEMPLATE_NAME)
    if entry is None:
        return None
    data = dataset.store.read(TEMPLATE_NAME)
    if data_entry(data) != entry:
        raise DatasetError(f"{dataset.where}/{TEMPLATE_NAME} is damaged: its hash is not the manifest's; build again")
    return data.decode()


def file_entry(path: Path) -> dict[str, Any]:
    """{bytes, xxh3} of a file, for Manifest.files."""
    return data_entry(path.read_bytes())


def data_entry(data: bytes) -> dict[str, Any]:
    """{bytes, xxh3} of the content of a file."""
    return {"bytes": len(data), "xxh3": xxhash.xxh3_64_hexdigest(data)}


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write manifest.json, whole or not at all. The checksum covers all other fields."""
    body = {name: value for name, value in asdict(manifest).items() if name not in _LATER or value is not None}
    text = json.dumps({**body, "checksum": _checksum(body)}, indent=1, sort_keys=True, ensure_ascii=False)
    write_whole(folder / MANIFEST_NAME, text + "\n")


def read_manifest(store: Store) -> Manifest:
    """The manifest of a shard folder; DatasetError for a manifest that is missing, damaged or of another contract."""
    path = f"{store.where}/{MANIFEST_NAME}"
    data = store.read(MANIFEST_NAME)
    try:
        body = json.loads(data.decode("utf-8"))
        checksum = body.pop("checksum")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{path} is damaged ({error}); rebuild the shards") from error
    if body.get("contract") != CONTRACT_VERSION:
        raise DatasetError(
            f"{path}: contract {body.get('contract')!r}, this lmms reads {CONTRACT_VERSION}; rebuild the shards"
        )
    if checksum != _checksum(body) or set(body) | _LATER != {field.name for field in fields(Manifest)}:
        raise DatasetError(f"{path} is damaged: its checksum does not match its content; rebuild the shards")
    body["vision"] = _read_vision(body["vision"])
    body["audio"] = Audio(**body["audio"]) if body.get("audio") else None
    body["sources"] = tuple(body["sources"])
    return Manifest(**body)


def open_dataset(where: str | Path, *, cache: Cache | None = None, retry_s: float = 120.0) -> Dataset:
    """A complete shard folder: manifest, contract, columns, and the size of every file are as stated.

    where: folder or URL, see configs/stores. In a store without a list of files, only manifest and index are
    checked here.
    cache: for the shards of a URL. ConfigError if the cache is too small for one shard.
    retry_s: seconds for which a failing store is asked again.
    """
    store = open_store(where, retry_s)
    manifest = read_manifest(store)
    sizes = store.sizes()
    if sizes is not None:
        for name, entry in manifest.files.items():
            _check_size(f"{store.where}/{name}", sizes.get(name), entry["bytes"])
    index = store.read(INDEX_NAME)
    if data_entry(index) != manifest.files[INDEX_NAME]:
        raise DatasetError(f"{store.where}/{INDEX_NAME} is damaged: its hash is not the manifest's; rebuild the shards")
    shards = tuple(read_index(index, f"{store.where}/{INDEX_NAME}"))
    for shard in shards:
        path = f"{store.where}/{shard.name}"
        if dict(shard.columns) != dict(COLUMNS):
            columns = ", ".join(f"{name} {encoding}" for name, encoding in shard.columns)
            raise DatasetError(f"{path}: columns {columns}; expected contract {CONTRACT_VERSION}")
        if sizes is not None:
            _check_size(path, sizes.get(shard.name), shard.bytes)
    if isinstance(store, LocalStore):
        return Dataset(store, manifest, shards)
    largest = max((shard.bytes for shard in shards), default=0)
    if cache and cache.limit_bytes < largest:
        raise ConfigError(
            f"data.cache_gb allows {cache.limit_bytes:,} bytes, but a shard of {store.where} has {largest:,};"
            " expected room for several"
        )
    return Dataset(store, manifest, shards, cache)


def _check_size(path: str, size: int | None, expected: int) -> None:
    if size is None:
        raise missing(path)
    if size != expected:
        raise DatasetError(
            f"{path} has {size} bytes, expected {expected}: truncated or changed; copy it again or rebuild"
        )


def _checksum(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, ensure_ascii=False)
    return xxhash.xxh3_64_hexdigest(text.encode(errors="surrogatepass"))  # damage may make half of a surrogate pair


def _read_vision(body: Mapping[str, Any] | None) -> Vision | None:
    if body is None:
        return None
    return Vision(**{**body, "image_mean": tuple(body["image_mean"]), "image_std": tuple(body["image_std"])})
