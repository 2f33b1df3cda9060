"""lmms prep build-shards: sources -> samples -> plan -> shards -> manifest, the whole story.

Two passes. The first reads every record, makes its sample and spools it to a folder beside the output (as large as the
output); the second, knowing all lengths, plans the packs and writes the shards. The manifest is written last and the
folder renamed: a build is complete or it is not there.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.check import PackLimits
from lmms.configs.contract.manifest import (
    PACKS_NAME,
    REJECTS_NAME,
    SAMPLES_NAME,
    TABLE_NAMES,
    Manifest,
    file_entry,
    write_manifest,
)
from lmms.configs.contract.mds import INDEX_NAME, index_json
from lmms.configs.contract.model_folder import PREP_FILES, ModelFolder, read_model_folder, resolve_model
from lmms.configs.contract.pack import COLUMNS, CONTRACT_VERSION, PACK_TABLE, SAMPLE_TABLE
from lmms.configs.errors import BuildError
from lmms.configs.files import new_folder
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.engine.ledger import Ledger, check_rejects, source_counts, write_rejects
from lmms.prep.engine.processes import map_ordered
from lmms.prep.engine.store import Spooled, spool_chunk
from lmms.prep.plan import ALGORITHM, Plan, plan_packs
from lmms.prep.render.render import RENDERER_VERSION, Renderer, load_renderer
from lmms.prep.samples import Recipe
from lmms.prep.shards import WrittenShard, shard_bounds, write_shard
from lmms.prep.sources import Chunk, Source, find_sources, read_chunks
from lmms.prep.tables import write_columns, write_rows

_NOT_IN_MANIFEST = ("out", "workers")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a build is. `done` and `total` are bytes of input (reading) or packs (writing)."""

    stage: str
    done: int
    total: int
    records: int
    tokens: int
    rejected: int


Report = Callable[[Progress], None]


def build_shards(config: PrepConfig, report: Report = lambda progress: None) -> Manifest:
    """Build a shard folder at config.out. Raises LmmsError; then there is no folder at config.out."""
    folder = read_model_folder(resolve_model(config.model, PREP_FILES), config.min_pixels, config.max_pixels)
    recipe = _recipe(config, folder)
    sources = find_sources(config.sources, config.media_root)
    out = Path(config.out)
    with new_folder(out, BuildError) as part:
        spool = part / "spool"
        spool.mkdir()
        ledger = _read(config, sources, folder, recipe, spool, report)
        samples = ledger.all_samples()
        check_rejects(ledger, config.max_rejects, out)
        plan = plan_packs(
            samples["tokens"], samples["patches"], recipe.limits.seq_len, recipe.limits.max_patches, config.seed
        )
        written = _write(config, samples, plan, recipe.limits, spool, part, report)
        shutil.rmtree(spool)
        _write_tables(part, written, samples, plan, ledger)
        manifest = _manifest(config, folder, recipe, ledger, samples, written, part)
        write_manifest(manifest, part)
    return manifest


def _recipe(config: PrepConfig, folder: ModelFolder) -> Recipe:
    merge_size = folder.vision.merge_size if folder.vision else 1
    patches = config.max_patches or (config.seq_len * merge_size**2 if folder.vision else 0)
    limits = PackLimits(
        seq_len=config.seq_len, max_patches=patches, image_token_id=folder.image_token_id, merge_size=merge_size
    )
    return Recipe(
        limits=limits,
        vision=folder.vision,
        verify_media=config.verify_media,
        max_image_pixels=config.max_image_pixels,
    )


_renderer: Renderer  # of this worker process: loading a tokenizer takes a second, too long for every chunk


def _load_renderer(folder: ModelFolder) -> None:
    global _renderer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _renderer = load_renderer(folder)


def _spool_task(sources: list[Source], recipe: Recipe, spool: Path, task: tuple[int, Chunk]) -> Spooled:
    chunk_id, chunk = task
    return spool_chunk(chunk_id, chunk, sources[chunk.source], _renderer, recipe, spool)


def _read(
    config: PrepConfig, sources: list[Source], folder: ModelFolder, recipe: Recipe, spool: Path, report: Report
) -> Ledger:
    ledger = Ledger(sources)
    sizes = [source.bytes for source in sources]
    chunks = enumerate(chunk for i, source in enumerate(sources) for chunk in read_chunks(i, source))
    tokens = 0
    task = partial(_spool_task, sources, recipe, spool)
    for spooled in map_ordered(task, chunks, config.workers, _load_renderer, (folder,)):
        ledger.add(spooled)
        tokens += int(spooled.samples["tokens"].sum())
        done = sum(sizes[: spooled.source]) + spooled.file_bytes
        report(Progress("reading", done, sum(sizes), ledger.read.total(), tokens, len(ledger.rejects)))
    return ledger


def _write_task(
    spool: Path, out: Path, limits: PackLimits, task: tuple[int, list[npt.NDArray[np.void]]]
) -> WrittenShard:
    return write_shard(*task, spool, out, limits)


def _nothing() -> None:
    """Shards need no set-up in their worker."""


def _write(
    config: PrepConfig,
    samples: npt.NDArray[np.void],
    plan: Plan,
    limits: PackLimits,
    spool: Path,
    out: Path,
    report: Report,
) -> list[WrittenShard]:
    packs = np.split(samples[plan.order], plan.starts[1:-1])
    sizes = np.array([int(entries["bytes"].sum()) for entries in packs], np.int64)
    bounds = shard_bounds(sizes, config.shard_bytes)
    tasks = ((i, packs[start:end]) for i, (start, end) in enumerate(pairwise(bounds)))
    written, done = [], 0
    for shard in map_ordered(partial(_write_task, spool, out, limits), tasks, config.workers, _nothing, ()):
        written.append(shard)
        done += shard.file.samples
        report(Progress("writing", done, plan.num_packs, len(samples), int(samples["tokens"].sum()), 0))
    return written


def _write_tables(
    out: Path, written: list[WrittenShard], samples: npt.NDArray[np.void], plan: Plan, ledger: Ledger
) -> None:
    (out / INDEX_NAME).write_bytes(index_json(COLUMNS, [shard.file for shard in written]))
    write_rows(out / PACKS_NAME, PACK_TABLE, [row for shard in written for row in shard.rows])
    segment = np.empty(len(samples), np.int32)
    segment[plan.order] = np.arange(len(samples)) - np.repeat(plan.starts[:-1], np.diff(plan.starts))
    columns = {name: np.ascontiguousarray(samples[name]) for name in SAMPLE_TABLE if name not in ("pack", "segment")}
    write_columns(out / SAMPLES_NAME, SAMPLE_TABLE, {**columns, "pack": plan.pack_of, "segment": segment})
    write_rejects(out / REJECTS_NAME, ledger)


def _manifest(
    config: PrepConfig,
    folder: ModelFolder,
    recipe: Recipe,
    ledger: Ledger,
    samples: npt.NDArray[np.void],
    written: list[WrittenShard],
    out: Path,
) -> Manifest:
    rows = [row for shard in written for row in shard.rows]
    counts = {
        "read": ledger.read.total(),
        "packed": len(samples),
        "rejected": len(ledger.rejects),
        "skipped": ledger.skipped.total(),
        "packs": len(rows),
        **{name: sum(row[name] for row in rows) for name in ("tokens", "target_tokens", "media", "patches")},
    }
    segments = sum(row["segments"] for row in rows)
    if counts["read"] != segments + counts["rejected"] + counts["skipped"]:
        raise BuildError(f"the counts do not add up: {counts}, {segments} segments written. This is a bug of lmms")
    settings = {key: value for key, value in asdict(config).items() if key not in _NOT_IN_MANIFEST}
    return Manifest(
        contract=CONTRACT_VERSION,
        family=folder.family,
        model=config.model,
        seq_len=config.seq_len,
        max_patches=recipe.limits.max_patches,
        image_token_id=folder.image_token_id,
        vision=folder.vision,
        packing=ALGORITHM,
        fingerprints={**folder.fingerprints, "renderer": RENDERER_VERSION, "records": ledger.digest.hexdigest()},
        counts=counts,
        rejects=dict(Counter(reject.reason for _, _, reject in ledger.rejects).most_common()),
        notes=dict(ledger.notes.most_common()),
        sources=tuple(source_counts(ledger, samples)),
        settings=settings,
        files={name: file_entry(out / name) for name in (INDEX_NAME, *TABLE_NAMES)},
    )
