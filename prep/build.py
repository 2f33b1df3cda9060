"""lmms prep build-shards: sources -> samples -> plan -> shards -> manifest, the whole story.

Two passes. The first reads every record, makes its sample and spools it to a folder next to the output (as large as the
output); the second, knowing all lengths, plans the packs and writes the shards. The manifest is written last and the
folder renamed: a build is complete or does not exist.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from lmms.configs.contract.check import pack_limits
from lmms.configs.contract.costs import folder_cost
from lmms.configs.contract.geometry import Vision
from lmms.configs.contract.manifest import NOT_READ, Manifest
from lmms.configs.contract.model_folder import PREP_FILES, ModelFolder, read_model_folder, resolve_model
from lmms.configs.errors import BuildError, ConfigError
from lmms.configs.files import at_home, new_folder, remove
from lmms.configs.load import read_text
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.transforms import name_of_transform
from lmms.prep.balanced import BALANCED
from lmms.prep.choice.first import first_records
from lmms.prep.chunks import memory_chunks, read_chunks
from lmms.prep.engine.duplicates import settle_duplicates
from lmms.prep.engine.kept import Kept, chunk_key, keep, kept_in, take_kept
from lmms.prep.engine.ledger import (
    Ledger,
    check_filters,
    check_held_out,
    check_rejects,
    fetched_rows,
    reject_rows,
    rejects_path,
    source_counts,
)
from lmms.prep.engine.processes import map_ordered
from lmms.prep.engine.room import folder_bytes, room_for
from lmms.prep.engine.store import Spooled, spool_chunk
from lmms.prep.first_records import memory_with_form, with_forms
from lmms.prep.media.network import Network
from lmms.prep.media.resize import with_areas
from lmms.prep.packing import planned_and_written
from lmms.prep.plan import ALGORITHM
from lmms.prep.progress import Progress, Report, silent
from lmms.prep.records.forms import DOCUMENT_FORMS
from lmms.prep.render.render import RENDERER_VERSION
from lmms.prep.render.renderer import Renderer, load_renderer
from lmms.prep.render.template import compile_template
from lmms.prep.rows.chunk import Chunk
from lmms.prep.rows.find import Unread
from lmms.prep.samples import Recipe
from lmms.prep.sources import Source, find_sources, memory_source
from lmms.prep.tables import read_pins
from lmms.prep.transforms.function import function_hashes
from lmms.prep.writer import Account, PackFacts, write_folder

FAST_FROM = 4 * 2**20
"""Bytes of sources from which on the fast tokenizer is loaded: that takes as long as to tokenize 2 MB without it."""

_NOT_IN_MANIFEST = ("out", "eval_out", "workers", "fast", "store")


def build_shards(config: PrepConfig, report: Report = silent, records: Any = None) -> Manifest:
    """Build a shard folder at config.out. Raises LmmsError; then there is no folder at config.out.

    With eval_share in the settings a second folder has the records for evaluation, complete as the first. The manifest
    that is returned is that of config.out: a folder is opened by its own manifest, and that of the second is
    open_dataset(config.eval_folder).manifest.

    report: called with the progress of the build. records: records in memory, instead of config.sources or after them:
    an iterable of dicts, a polars frame or a datasets.Dataset, with the columns that docs/records.md names.
    """
    folder = _model_folder(config)
    recipe = _recipe(config, folder)
    cost = folder_cost(folder.path, config.cost_of) if config.plan == "balanced" else None
    with ExitStack() as folders:
        part = folders.enter_context(new_folder(config.folder, BuildError))
        spool, fetched = part / "spool", part / "fetched"
        spool.mkdir()
        sources, unread = find_sources(config.sources, config.media_root, config, fetched, report)
        sources = with_forms(sources)
        memory: Iterator[Chunk] = iter(())
        if records is not None:
            chunks = memory_chunks(len(sources), records)
            source, memory = memory_with_form(memory_source(config.media_root, config), chunks)
            sources.append(source)
        if not sources:
            raise ConfigError("sources is empty: expected at least one file, folder or glob, or records in memory")
        _check_options(sources, folder.chat_template)
        _check_areas(sources, folder.vision)
        _check_transforms(sources)
        _function_hashes(sources)
        eval_part = None
        if any(source.choice.eval_share for source in sources):
            eval_part = folders.enter_context(new_folder(config.eval_folder, BuildError))
        elif config.eval_out or config.eval_by:
            raise ConfigError("eval_out or eval_by is set, but no eval_share; expected a share such as 0.01")
        ledger, held_out = _read(config, sources, memory, folder, spool, report)
        check_filters(ledger)
        check_rejects(ledger, config.max_rejects, config.folder)
        if eval_part:
            check_held_out(held_out, ledger)
        for half in (ledger, held_out):
            settle_duplicates(half, config.duplicates == "drop")
        halves = [
            (half, into, planned_and_written(config, half.all_samples(), recipe.limits, cost, spool, into, report))
            for half, into in ((ledger, part), (held_out, eval_part))
            if into
        ]
        shutil.rmtree(spool)
        remove(fetched)
        manifests = [
            write_folder(into, _facts(config, folder, half), written, rows, _account(half, unread))
            for half, into, (written, rows) in halves
        ]
    if config.store is None and config.store_folder:
        remove(config.store_folder)
    remove(rejects_path(config.folder))  # of an earlier build that stopped: those records are not of this folder
    return manifests[0]


def _model_folder(config: PrepConfig) -> ModelFolder:
    template = None if config.chat_template is None else read_text(Path(at_home(config.chat_template)))
    return read_model_folder(resolve_model(config.model, PREP_FILES), config.min_pixels, config.max_pixels, template)


def _check_options(sources: Sequence[Source], chat_template: str) -> None:
    """ConfigError for keywords in the settings that the chat template does not read."""
    template = compile_template(chat_template)
    for source in sources:
        if fault := template.refused(source.reading.template_options):
            raise ConfigError(f"template_options of {source.name}: {fault}")


def _check_areas(sources: Sequence[Source], vision: Vision | None) -> None:
    """ConfigError for a source whose smallest picture would be larger than its largest."""
    for source in sources if vision else ():
        areas = with_areas(vision, source.reading.min_pixels, source.reading.max_pixels)
        if areas.min_pixels > areas.max_pixels:
            raise ConfigError(
                f"source {source.name}: the smallest picture has {areas.min_pixels} pixels, the largest"
                f" {areas.max_pixels}; expected both of min_pixels and max_pixels, in this order"
            )


def _check_transforms(sources: Sequence[Source]) -> None:
    """ConfigError for a transform of a source of plain texts: transforms change turns, and a text has none."""
    for source in sources:
        if source.reading.transforms and source.reading.form in DOCUMENT_FORMS:
            names = ", ".join(map(name_of_transform, source.reading.transforms))
            raise ConfigError(
                f"source {source.name} holds plain texts (form {source.reading.form}), but its transforms ({names})"
                " change conversations; set transforms: [] for this source, or transforms for the other sources alone"
            )


def _function_hashes(sources: Sequence[Source]) -> dict[str, str]:
    """The functions of the user's that sources name -> hash of their file. Raises ConfigError."""
    return function_hashes([step for source in sources for step in source.reading.transforms])


def _recipe(config: PrepConfig, folder: ModelFolder) -> Recipe:
    return Recipe(
        limits=pack_limits(config.seq_len, _max_patches(config, folder), folder.vision, folder.image_token_id),
        vision=folder.vision,
        verify_media=config.verify_media,
        max_image_pixels=config.max_image_pixels,
        text_overlap=config.text_overlap,
        seed=config.seed,
        edited_jpeg_quality=config.edited_jpeg_quality,
        network=Network() if config.allow_network else None,
        pins=read_pins(config.pinned_images) if config.pinned_images else {},
    )


def _max_patches(config: PrepConfig, folder: ModelFolder) -> int:
    return config.max_patches or (config.seq_len * folder.vision.merge_size**2 if folder.vision else 0)


def _is_large(sources: Sequence[Source]) -> bool:
    """Whether the fast tokenizer saves more time than its loading takes. The size of records in memory is not known."""
    return any(source.kind == "memory" for source in sources) or sum(source.bytes for source in sources) >= FAST_FROM


_renderer: Callable[[], Renderer]
"""The renderer of this worker process, loaded when the first chunk needs it: a tokenizer takes a second."""


def _prepare_worker(folder: ModelFolder, fast: bool, is_large: bool) -> None:
    global _renderer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _renderer = cache(partial(load_renderer, folder, fast, is_large))


def _spool_task(
    sources: list[Source], recipe: Recipe, kept: Kept | None, spool: Path, task: tuple[int, Chunk]
) -> tuple[Spooled, Spooled]:
    chunk_id, chunk = task
    source = sources[chunk.source]
    key = chunk_key(kept, chunk, source) if kept else None
    if kept and key and (result := take_kept(kept, key, chunk, chunk_id, spool)):
        return result
    recipe = replace(recipe, opened={})
    result = spool_chunk(chunk_id, chunk, source, _renderer(), recipe, spool)
    if kept and key:
        keep(kept, key, result, chunk_id, spool, recipe.opened)
    return result


def _kept(config: PrepConfig, folder: ModelFolder, recipe: Recipe, sources: Sequence[Source]) -> Kept | None:
    """The place in which this build keeps its chunks; None where nothing is kept, as of what depends on the network."""
    if config.store_folder is None or config.allow_network:
        return None
    model = (folder.family, folder.fingerprints, folder.special_tokens, folder.chat_template, RENDERER_VERSION)
    settings = (model, replace(recipe, limits=pack_limits(0, 0, None, None), opened={}), _function_hashes(sources))
    return kept_in(config.store_folder, settings, recipe.limits)


def _chunks(sources: Sequence[Source], memory: Iterator[Chunk]) -> Iterator[Chunk]:
    """The chunks of all sources; records in memory are the last of them."""
    yield from read_chunks([source for source in sources if source.kind != "memory"])
    yield from first_records(memory, sources[-1].choice.max_records)


def _name_of(sources: Sequence[Source], task: tuple[int, Chunk]) -> str:
    _, chunk = task
    return f"rows {chunk.first_row} to {chunk.first_row + len(chunk.rows) - 1} of {sources[chunk.source].name}"


def _bytes_needed(spooled: int, done: int, total: int) -> int:
    """About how large the spool and the shards become, from the spool after `done` of `total` bytes of the input."""
    return 2 * spooled * total // done if done else 2 * spooled


def _read(
    config: PrepConfig,
    sources: list[Source],
    memory: Iterator[Chunk],
    folder: ModelFolder,
    spool: Path,
    report: Report,
) -> tuple[Ledger, Ledger]:
    """What became of all records, and of those for evaluation."""
    ledger, held_out = Ledger(sources), Ledger(sources)
    sizes = [source.bytes for source in sources]
    tokens = 0
    report(Progress("reading", 0, sum(sizes), 0, 0, 0))
    recipe = _recipe(config, folder)
    task = partial(_spool_task, sources, recipe, _kept(config, folder, recipe, sources), spool)
    chunks = enumerate(_chunks(sources, memory))
    setup = partial(_prepare_worker, folder, config.fast, _is_large(sources))
    done = 0
    with (
        room_for(spool.parent, lambda: _bytes_needed(folder_bytes(spool), done, sum(sizes))),
        closing(map_ordered(task, chunks, config.workers, setup, partial(_name_of, sources))) as results,
    ):
        for spooled, spooled_apart in results:
            ledger.add(spooled)
            held_out.add(spooled_apart)
            tokens += int(spooled.samples["tokens"].sum()) + int(spooled_apart.samples["tokens"].sum())
            done = sum(sizes[: spooled.source]) + spooled.file_bytes
            report(Progress("reading", done, sum(sizes), ledger.read.total(), tokens, len(ledger.rejects)))
    return ledger, held_out


def _facts(config: PrepConfig, folder: ModelFolder, ledger: Ledger) -> PackFacts:
    return PackFacts(
        model=folder,
        model_name=config.model,
        seq_len=config.seq_len,
        max_patches=_max_patches(config, folder),
        sources=[source.name for source in ledger.sources],
        packing=BALANCED if config.plan == "balanced" else ALGORITHM,
        renderer=RENDERER_VERSION,
        records=ledger.digest.hexdigest(),
        settings={key: value for key, value in asdict(config).items() if key not in _NOT_IN_MANIFEST}
        | ({"functions": hashes} if (hashes := _function_hashes(ledger.sources)) else {}),
    )


def _account(ledger: Ledger, unread: Unread) -> Account:
    return Account(
        sources=list(source_counts(ledger, ledger.all_samples())),
        rejects=reject_rows(ledger),
        fetched=fetched_rows(ledger),
        notes=dict(sum(ledger.notes.values(), Counter()).most_common())
        | {NOT_READ + what: number for what, number in unread.most_common()},
    )
