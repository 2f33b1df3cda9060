"""Paths, folders, globs and URLs -> sources: which files are read, in which order, with which settings.

    .jsonl .ndjson                lines, one record each; they end at \\n only
    .json                         a list of records, lines of records, or one record
    .csv .tsv                     one record a row, its cells as strings
    .tar                          a WebDataset: members with one key are a record
    .parquet                      one record a row
    .arrow                        Arrow IPC, file or stream, one record a row
    a folder with state.json      datasets.Dataset.save_to_disk
    other folders, globs          every file of a kind above in them, by name
    URLs                          copied first, see prep/rows/remote.py

Those of the first four lines may be compressed: .gz, .zst, .xz, .bz2.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmms.configs.errors import ConfigError, SourceError
from lmms.configs.files import at_home
from lmms.configs.settings.sources import (
    DEFAULT_CHOICE,
    DEFAULT_READING,
    NO_RECORD_SETTINGS,
    Choice,
    Reading,
    RecordConfig,
    SourceConfig,
    decide_choice,
    decide_reading,
)
from lmms.configs.source_list import expand_sources
from lmms.configs.stores.store import Store
from lmms.prep.choice.filter import filter_columns
from lmms.prep.media.roots import MediaRoot, media_roots
from lmms.prep.progress import Report, silent
from lmms.prep.records.forms import columns_read, form_columns
from lmms.prep.records.normal.fields import check_fields_map, column_of
from lmms.prep.rows.find import FileSet, Unread, find_files
from lmms.prep.rows.kinds import Kind
from lmms.prep.rows.remote import fetch_files, is_url


@dataclass(frozen=True, slots=True)
class Source:
    """One input: a file, the files of a saved Hugging Face data set, or records in memory."""

    name: str
    """Name that the user gave; the ledger, the manifest and `lmms inspect` show it."""
    files: tuple[Path, ...]
    """Empty where the records are in memory."""
    kind: Kind
    roots: tuple[Path, ...]
    """Folders that image paths are relative to, tried in order, and may not leave."""
    beside: Store | None = None
    """The store that image paths are relative to in place of the roots: that of a source behind a URL."""
    reading: Reading = DEFAULT_READING
    """How its records are read."""
    choice: Choice = DEFAULT_CHOICE
    """Which of its records are taken."""
    entry: int = 0
    """Place of its entry in the user's list of sources: an entry may have several files."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """The settings of its entry."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a table that are converted; of other columns only the name is used."""
        return tuple(dict.fromkeys((*columns_read(self.reading), *self.chosen_by)))

    @property
    def chosen_by(self) -> tuple[str, ...]:
        """Columns that decide which records are taken."""
        return columns_of_choice(self.choice)

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(file.stat().st_size for file in self.files)


def find_sources(
    configs: Sequence[SourceConfig | str],
    media_root: MediaRoot,
    base: RecordConfig = NO_RECORD_SETTINGS,
    fetched: Path | None = None,
    report: Report = silent,
) -> tuple[list[Source], Unread]:
    """The sources behind paths, folders, globs and URLs, and what is not read there.

    A file that is reached twice, also by a link or as a hard link, is one source. They come in the order given, by name
    within a folder or glob. base: settings of the build, for what a source does not set itself. fetched: folder for
    copies of files behind URLs, which is there as long as the sources are read; report: called while they are copied.
    ConfigError for a file that two entries read in different ways, and for two sources of one name.
    """
    sources: dict[tuple[int, int], Source] = {}
    unread: Unread = Counter()
    for entry, config in enumerate(expand_sources(configs)):
        reading, choice = decide_reading(config, base), decide_choice(config, base)
        columns_of_choice(choice)  # its faults before anything is read
        check_fields_map(reading.fields, form_columns(reading.form))
        file_sets, unread_here = _files_at(config.path, fetched, report)
        unread += unread_here
        for files in file_sets:
            _check_type(files, config.data_type)
            name = files.name if config.name is None else _named(config.name, files, file_sets)
            own_root = config.own_root or media_root
            roots, beside = media_roots(own_root, files.folder), None if own_root else files.beside
            source = Source(name, files.files, files.kind, roots, beside, reading, choice, entry, config.given)
            status = files.files[0].stat()
            first = sources.setdefault((status.st_dev, status.st_ino), source)
            _check_same(first, source, config.path)
    _check_names(list(sources.values()))
    return list(sources.values()), unread


def columns_of_choice(choice: Choice) -> tuple[str, ...]:
    """The columns that decide which records are taken. ConfigError for a filter or a path that is none."""
    by_filter = filter_columns(choice.filter) if choice.filter else ()
    return (*by_filter, *([column_of(choice.eval_by)] if choice.eval_by else []))


def _files_at(path: str, fetched: Path | None, report: Report) -> tuple[list[FileSet], Unread]:
    if not is_url(path):
        return find_files(at_home(path))
    assert fetched is not None
    return fetch_files(path, fetched, report)


def _check_same(first: Source, again: Source, path: str) -> None:
    """ConfigError if a file comes again with other settings: which of the two are meant?"""
    names = sorted({*first.given, *again.given})
    differing = [name for name in names if first.given.get(name) != again.given.get(name)]
    if differing:
        name = differing[0]
        values = f"{first.given.get(name, 'not set')} and {again.given.get(name, 'not set')}"
        raise ConfigError(
            f"source {path}: {again.files[0]} is also read by another source, and the two differ in {name}: {values};"
            " expected one source for each file (with repeat a source counts several times)"
        )


def _check_names(sources: Sequence[Source]) -> None:
    counts = Counter(source.name for source in sources)
    for name in (name for name, count in counts.items() if count > 1):
        files = " and ".join(str(source.files[0]) for source in sources if source.name == name)
        raise ConfigError(f"{files} have the same name {name}; expected a name of its own for each source")


def _check_type(files: FileSet, data_type: str | None) -> None:
    """SourceError if the file is not of the kind that its entry says."""
    kind = "jsonl" if files.kind == "json" else files.kind
    if data_type and kind != ("jsonl" if data_type == "json" else data_type):
        raise SourceError(f"{files.name}: data_type says {data_type}, but the file is read as {files.kind}")


def _named(name: str, files: FileSet, all_files: Sequence[FileSet]) -> str:
    """The name that the user gave, with the place of the file where the user's path has several files."""
    if len(all_files) == 1:
        return name
    folder = os.path.commonpath([Path(each.name).parent for each in all_files])
    return f"{name}/{Path(files.name).relative_to(folder).as_posix()}"


def memory_source(media_root: MediaRoot, base: RecordConfig) -> Source:
    """The source of records in memory: their image paths are relative to media_root, or to the working folder."""
    roots = media_roots(media_root, Path())
    return Source("memory", (), "memory", roots, reading=decide_reading(base), choice=decide_choice(base), entry=-1)
