"""The first pass of a build: sources -> what became of every record.

Records are read in chunks by worker processes, which spool the samples; the ledger has their lengths.
"""

import gc
import math
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lmms.configs.contract.check import pack_limits
from lmms.configs.contract.media.geometry import Vision
from lmms.configs.contract.model_folder import PREP_FILES, ModelFolder, read_model_folder, resolve_model
from lmms.configs.errors import ConfigError
from lmms.configs.files import at_home
from lmms.configs.load import read_text
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.transforms import name_of_transform
from lmms.prep.audio.facts import SoundFormat
from lmms.prep.choice.first import first_records
from lmms.prep.chunks import Numbered, memory_chunks, read_chunks, read_groups, source_groups
from lmms.prep.engine.deaths import PROCESS_DIED, after_death
from lmms.prep.engine.kept import Kept, chunk_key, keep, kept_in, take_kept
from lmms.prep.engine.ledger import (
    Ledger,
)
from lmms.prep.engine.memory import Shares, hold_to_share, may_start, shares_of, within_share
from lmms.prep.engine.processes import map_ordered
from lmms.prep.engine.room import folder_bytes, room_for
from lmms.prep.engine.store import Spooled, spool_chunk
from lmms.prep.engine.tasks import Call, groups_on_ray
from lmms.prep.first_records import memory_with_form, with_forms
from lmms.prep.media.network import Network
from lmms.prep.media.read import Looked
from lmms.prep.media.resize import with_areas
from lmms.prep.progress import Progress, Report
from lmms.prep.records.forms import DOCUMENT_FORMS
from lmms.prep.render.render import RENDERER_VERSION
from lmms.prep.render.renderer import Renderer, load_renderer
from lmms.prep.render.template import compile_template
from lmms.prep.rows.chunk import Chunk
from lmms.prep.rows.find import Unread
from lmms.prep.sample.frame_prices import FramePrices
from lmms.prep.sample.recipe import Recipe
from lmms.prep.sources import Source, find_sources, memory_source
from lmms.prep.tables import read_pins
from lmms.prep.transforms.function import function_hashes
from lmms.prep.unchanged import States, states_of, unchanged
from lmms.prep.video.facts import FrameFormat, VideoLimits
from lmms.prep.video.process import stop

FAST_FROM = 4 * 2**20
"""Bytes of sources from which on the fast tokenizer is loaded: that takes as long as to tokenize 2 MB without it."""
ALL_AT_ONCE_FROM = 64 * 2**20
"""Bytes of sources from which on all workers start at once: to read them takes longer than a start."""


@dataclass(frozen=True, slots=True)
class Input:
    """The sources of a build, with the form of their records, and the model's folder."""

    model: ModelFolder
    sources: list[Source]
    memory: Iterator[Chunk]
    """Records in memory, the last of the sources."""
    unread: Unread
    states: States
    """The files of the sources before anything was read."""


def find_input(config: PrepConfig, fetched: Path, report: Report, records: Any) -> Input:
    """What a build reads, after all checks that need no record. fetched: folder for copies of files behind URLs.

    records: as in build_shards. Raises LmmsError.
    """
    folder = _model_folder(config)
    sources, unread = find_sources(config.sources, config.media_root, config, fetched, report)
    states = states_of(sources)
    with unchanged(states):
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
    used_functions(sources)
    return Input(folder, sources, memory, unread, states)


def read_records_of(
    given: Input, config: PrepConfig, spool: Path | None, report: Report, share: float = 1.0
) -> tuple[Ledger, Ledger]:
    """What became of all records, and of those for evaluation.

    spool: the folder for their samples; None: only the ledgers are wanted. share: of the rows of each chunk, the first
    of them.
    """
    sources = given.sources
    ledger, held_out = Ledger(sources), Ledger(sources)
    sizes = [source.bytes for source in sources]
    tokens = 0
    report(Progress("reading", 0, sum(sizes), 0, 0, 0))
    recipe = recipe_of(config, given.model)
    kept = _kept(config, given.model, recipe, sources) if spool else None
    task = partial(_spool_task, sources, recipe, kept, spool)
    setup = partial(_prepare_worker, given.model, config.fast, _is_large(sources))
    done = 0
    with ExitStack() as stack:
        if spool:
            stack.enter_context(room_for(spool.parent, lambda: _bytes_needed(folder_bytes(spool), done, sum(sizes))))
        if config.engine == "ray":
            call = Call(task, setup, (given.model.path, *sources[0].files, *([spool] if spool else [])))
            groups = source_groups([source for source in sources if source.kind != "memory"])
            memory = _shares(first_records(given.memory, sources[-1].choice.max_records), share)
            results = groups_on_ray(
                call,
                partial(_read_group, share),
                groups,
                memory,
                _name_of_group,
                lambda: partial(_again, sources, _lost(ledger)),
            )
        else:
            shares = shares_of(config.memory, config.workers)
            chunks = _chunks(sources, given.memory, share)
            tasks = enumerate(within_share(shares, chunk, sources[chunk.source].name) for chunk in chunks)
            first = _first(tasks, shares)
            workers = min(shares.workers, max(len(first), 1))  # no process without work: its start takes a second
            name_of = partial(_name_of, sources)
            setup = partial(_prepare_worker, given.model, config.fast, _is_large(sources), shares.process)
            fits = partial(may_start, shares)
            results = map_ordered(
                task,
                chain(_taken(first), tasks),
                workers,
                setup,
                name_of,
                lambda *of_death: _again(sources, _lost(ledger), *of_death),
                fits,
                None if sum(sizes) >= ALL_AT_ONCE_FROM else lambda: done / max(sum(sizes), 1),
            )
        for spooled, spooled_apart in stack.enter_context(closing(results)):
            ledger.add(spooled)
            held_out.add(spooled_apart)
            tokens += int(spooled.samples["tokens"].sum()) + int(spooled_apart.samples["tokens"].sum())
            done = sum(sizes[: spooled.source]) + spooled.file_bytes
            report(Progress("reading", done, sum(sizes), ledger.read.total(), tokens, len(ledger.rejects)))
    return ledger, held_out


def _model_folder(config: PrepConfig) -> ModelFolder:
    template = None if config.chat_template is None else read_text(Path(at_home(config.chat_template)))
    return read_model_folder(resolve_model(config.model, PREP_FILES), config.min_pixels, config.max_pixels, template)


def recipe_of(config: PrepConfig, folder: ModelFolder) -> Recipe:
    return Recipe(
        limits=pack_limits(
            config.seq_len,
            max_patches_of(config, folder),
            folder.vision,
            folder.image_token_id,
            folder.video_token_id,
            folder.audio_token_id,
            folder.audio,
        ),
        vision=folder.vision,
        verify_media=config.verify_media,
        max_image_pixels=config.max_image_pixels,
        text_overlap=config.text_overlap,
        video=folder.video if folder.video_token_id is not None else None,
        video_backend=config.video_backend,
        video_limits=VideoLimits(
            timeout_s=config.media_timeout,
            memory=config.media_memory,
            max_pixels=config.max_image_pixels,
            check="frames" if config.verify_media == "decode" else "packets",
        ),
        frame_format=FrameFormat(config.video_encoding, config.video_quality),
        resizes_frames=config.video_frames == "resized",
        audio=folder.audio,
        sound_format=SoundFormat(16 if config.audio_encoding == "flac16" else 24),
        cuts_sounds=config.audio_too_long == "cut",
        seed=config.seed,
        edited_jpeg_quality=config.edited_jpeg_quality,
        network=Network() if config.allow_network else None,
        pins=read_pins(config.pinned_images) if config.pinned_images else {},
    )


_POSITIONS_A_TOKEN = 2


def max_patches_of(config: PrepConfig, folder: ModelFolder) -> int:
    """If nothing is set: as many patches, or positions of sounds, as all tokens of a pack stand for."""
    a_token = folder.vision.merge_size**2 if folder.vision else _POSITIONS_A_TOKEN if folder.audio else 0
    return config.max_patches or config.seq_len * a_token


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


def used_functions(sources: Sequence[Source]) -> dict[str, str]:
    """The functions of the user's that sources name -> hash of their file. Raises ConfigError."""
    return function_hashes([step for source in sources for step in source.reading.transforms])


def _is_large(sources: Sequence[Source]) -> bool:
    """Whether the fast tokenizer saves more time than its loading takes. The size of records in memory is not known."""
    return any(source.kind == "memory" for source in sources) or sum(source.bytes for source in sources) >= FAST_FROM


_renderer: Callable[[], Renderer]
"""The renderer of this worker process, loaded when the first chunk needs it: a tokenizer takes a second."""


def _prepare_worker(
    folder: ModelFolder, fast: bool, is_large: bool, most_bytes: int | None = None
) -> Callable[[], None]:
    """Returns what ends the process that decodes: its CPU time counts as that of the build once it has ended."""
    global _renderer
    hold_to_share(most_bytes)
    if multiprocessing.parent_process():
        # Records are many small objects in no circles: a look for circles as often as by default takes a tenth longer.
        gc.set_threshold(50_000, 20, 100)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _renderer = cache(partial(load_renderer, folder, fast, is_large))
    return stop


def _spool_task(
    sources: list[Source], recipe: Recipe, kept: Kept | None, spool: Path | None, task: tuple[int, Chunk]
) -> tuple[Spooled, Spooled]:
    chunk_id, chunk = task
    source = sources[chunk.source]
    key = chunk_key(kept, chunk, source) if kept else None
    if kept and key and spool and (result := take_kept(kept, key, chunk, chunk_id, spool)):
        return result
    recipe = replace(recipe, looked=Looked(), prices=None if spool else FramePrices())
    result = spool_chunk(chunk_id, chunk, source, _renderer(), recipe, spool)
    # With more memory, a later build may read what was lost.
    if kept and key and spool and not (chunk.care and chunk.care.lost):
        keep(kept, key, result, chunk_id, spool, recipe.looked.files)
    return result


def _kept(config: PrepConfig, folder: ModelFolder, recipe: Recipe, sources: Sequence[Source]) -> Kept | None:
    """The place in which this build keeps its chunks; None where nothing is kept, as of what depends on the network."""
    if config.store_folder is None or config.allow_network:
        return None
    model = (folder.family, folder.fingerprints, folder.special_tokens, folder.chat_template, RENDERER_VERSION)
    settings = (model, replace(recipe, limits=pack_limits(0, 0, None, None), looked=Looked()), used_functions(sources))
    return kept_in(config.store_folder, settings, recipe.limits)


def _chunks(sources: Sequence[Source], memory: Iterator[Chunk], share: float) -> Iterator[Chunk]:
    """The chunks of all sources, or a share of each of them; records in memory are the last."""
    files = read_chunks([source for source in sources if source.kind != "memory"])
    yield from _shares(chain(files, first_records(memory, sources[-1].choice.max_records)), share)


def _read_group(share: float, group: Sequence[Numbered]) -> Iterator[Chunk]:
    return _shares(read_groups([group]), share)


def _shares(chunks: Iterable[Chunk], share: float) -> Iterator[Chunk]:
    for chunk in chunks:
        most = len(chunk.rows) if chunk.most is None else chunk.most
        yield chunk if share == 1 else replace(chunk, most=math.ceil(most * share))


def _name_of_group(group: Sequence[Numbered]) -> str:
    return f"rows of {group[0][1].name}"


def _first(tasks: Iterator[tuple[int, Chunk]], shares: Shares) -> deque[tuple[int, Chunk]]:
    """The chunks that can be begun at once."""
    first = deque[tuple[int, Chunk]]()
    for task in islice(tasks, shares.workers):
        first.append(task)
        if not may_start(shares, first, task):
            break
    return first


def _taken(chunks: deque[tuple[int, Chunk]]) -> Iterator[tuple[int, Chunk]]:
    """These chunks, held no longer than needed."""
    while chunks:
        yield chunks.popleft()


def _name_of(sources: Sequence[Source], task: tuple[int, Chunk]) -> str:
    _, chunk = task
    return f"rows {chunk.first_row} to {chunk.first_row + len(chunk.rows) - 1} of {sources[chunk.source].name}"


def _again(
    sources: Sequence[Source], lost_before: int, task: tuple[int, Chunk], how: str, row: int | None
) -> tuple[int, Chunk]:
    """The task of a worker that died, see map_ordered."""
    chunk_id, chunk = task
    return chunk_id, after_death(chunk, how, row, lost_before, sources[chunk.source].name)


def _lost(ledger: Ledger) -> int:
    """Records so far with which processes died."""
    return sum(reject.reason == PROCESS_DIED for _, _, reject in ledger.rejects)


def _bytes_needed(spooled: int, done: int, total: int) -> int:
    """About how large the spool and the shards become, from the spool after `done` of `total` bytes of the input."""
    return 2 * spooled * total // done if done else 2 * spooled
