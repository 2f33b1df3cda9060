"""What became of every record: its count, and for a rejected record the reason. No record is lost."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.manifest import SKIPPED
from lmms.configs.contract.pack import REJECT_TABLE, first_samples
from lmms.configs.errors import BuildError, ConfigError
from lmms.prep.choice.filter import filter_columns
from lmms.prep.engine.room import room_for
from lmms.prep.engine.store import SPOOLED, Spooled
from lmms.prep.engine.work import Work
from lmms.prep.media.pins import Fetched
from lmms.prep.reject import Reject
from lmms.prep.rows.find import REJECTS_ENDING
from lmms.prep.sample.frame_prices import FramePrices
from lmms.prep.sources import Source
from lmms.prep.tables import write_rows

_ROW_BYTES = 100
"""About what a rejected record takes in its table."""


@dataclass(slots=True)
class Ledger:
    """What became of every record read so far, in reading order."""

    sources: list[Source]
    samples: list[npt.NDArray[np.void]] = field(default_factory=list)
    rejects: list[tuple[int, int, Reject]] = field(default_factory=list)
    notes: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Number of a source -> name of what was not used -> records."""
    cut_turns: Counter[int] = field(default_factory=Counter)
    duplicates: Counter[int] = field(default_factory=Counter)
    """Number of a source -> records that equal an earlier record of the build."""
    rows: Counter[int] = field(default_factory=Counter)
    """Number of a source -> its rows; more than were read where a share of them was wanted."""
    read: Counter[int] = field(default_factory=Counter)
    skipped: Counter[int] = field(default_factory=Counter)
    filter_columns: defaultdict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Number of a source -> the columns of its filter that some record has."""
    fetched: set[Fetched] = field(default_factory=set)
    """Pictures that came over the network."""
    digest: Any = field(default_factory=hashlib.sha256)
    work: defaultdict[int, Work] = field(default_factory=lambda: defaultdict(Work))
    """Number of a source -> what its chunks took."""
    prices: FramePrices = field(default_factory=FramePrices)
    """What frames of videos would take in other forms, if that was measured."""

    def add(self, spooled: Spooled) -> None:
        """Add one chunk; chunks come in reading order."""
        self.samples.append(spooled.samples)
        self.rejects += [(spooled.source, row, reject) for row, reject in spooled.rejects]
        self.notes[spooled.source] += spooled.notes
        self.cut_turns[spooled.source] += spooled.cut_turns
        self.rows[spooled.source] += spooled.rows
        self.read[spooled.source] += spooled.read
        self.skipped[spooled.source] += spooled.skipped
        self.filter_columns[spooled.source] |= spooled.filter_columns
        self.fetched |= spooled.fetched
        self.digest.update(spooled.digest)
        self.work[spooled.source].add(spooled.work)
        self.prices.add(spooled.prices)

    def all_samples(self) -> npt.NDArray[np.void]:
        """SPOOLED [samples]: every sample, in reading order."""
        return np.concatenate([*self.samples, np.zeros(0, SPOOLED)])


def check_filters(ledger: Ledger) -> None:
    """ConfigError for a filter with a column that no record of its source has."""
    for i, source in enumerate(ledger.sources):
        columns = filter_columns(source.choice.filter) if source.choice.filter and ledger.read[i] else ()
        missing = [name for name in columns if name not in ledger.filter_columns[i]]
        if missing:
            raise ConfigError(
                f"filter {source.choice.filter!r}: no record of {source.name} has the column {missing[0]}; expected a"
                " column of its records"
            )


def rejects_path(out: Path) -> Path:
    """The ledger of a build that stops, beside its output."""
    return out.with_name(out.name + REJECTS_ENDING)


def check_rejects(ledger: Ledger, max_rejects: float, out: Path) -> None:
    """Stop if more than the allowed share was rejected, and keep the ledger for the user."""
    considered = ledger.read.total() - ledger.skipped.total()
    packable = considered - len(ledger.rejects)
    # As the user wrote it: 0.29 * 100 is less than 29 in floating point.
    allowed = Fraction(repr(max_rejects)) * considered
    if considered and packable and len(ledger.rejects) <= allowed:
        return
    if not considered:
        skips = {note: n for notes in ledger.notes.values() for note, n in notes.items() if note.startswith(SKIPPED)}
        left_out = "".join(f"; {n:,} {note}" for note, n in skips.items())
        names = ", ".join(source.name for source in ledger.sources[:5])
        raise BuildError(f"no records in {names}: nothing to pack{left_out}")
    kept = rejects_path(out)
    with room_for(kept.parent, lambda: _ROW_BYTES * len(ledger.rejects)):
        write_rows(kept, REJECT_TABLE, reject_rows(ledger))
    first: dict[str, tuple[int, int, Reject]] = {}
    for entry in ledger.rejects:
        first.setdefault(entry[2].reason, entry)
    lines = []
    for reason, count in Counter(reject.reason for _, _, reject in ledger.rejects).most_common(5):
        source, row, reject = first[reason]
        lines.append(f"  {count:>8}  {reason}: e.g. {ledger.sources[source].name}, row {row}: {reject.message}")
    share = f"{len(ledger.rejects)} of {considered} records were rejected"
    limit = f"--max-rejects allows {max_rejects:.2%}" if packable else "nothing is left to pack"
    raise BuildError("\n".join([f"{share}, {limit}. All of them, with reasons: {kept}", *lines]))


def check_held_out(held_out: Ledger, ledger: Ledger) -> None:
    """BuildError if no record is for evaluation, though the settings ask for a share of them."""
    if not held_out.read.total():
        read = ledger.read.total() - ledger.skipped.total()
        share = max(source.choice.eval_share for source in held_out.sources)
        raise BuildError(
            f"none of {read:,} records is for evaluation, with eval_share {share:g}; expected one at least: set a"
            " larger share, or pack an evaluation set of its own"
        )


def reject_rows(ledger: Ledger) -> list[dict[str, Any]]:
    """A row of rejects.parquet for each rejected record, in reading order."""
    return [
        {
            "source": ledger.sources[source].name,
            "row": row,
            "reason": reject.reason,
            "message": _printable(reject.message),
            "place": _printable(reject.place),
        }
        for source, row, reject in ledger.rejects
    ]


def fetched_rows(ledger: Ledger) -> list[dict[str, Any]]:
    """A row of fetched.parquet for each picture that came over the network, by URL."""
    return [
        {
            "url": _printable(picture.url),
            "sha256": picture.sha256,
            "bytes": picture.bytes,
            "width": picture.size[0],
            "height": picture.size[1],
        }
        for picture in sorted(ledger.fetched)
    ]


def _printable(text: str) -> str:
    """A text that a table can hold: half of a surrogate pair, which a message may quote, is written as its escape."""
    return text.encode(errors="backslashreplace").decode()


def source_counts(ledger: Ledger, samples: npt.NDArray[np.void]) -> Iterator[dict[str, Any]]:
    """{name, form, settings, read, packed, samples, rejected, skipped, tokens, rejects, notes, cut_turns,
    duplicates} of a source.

    The sources come in reading order. packed: records; a long document and a repeated record have several samples.
    rejects: reason -> records.
    """
    count = len(ledger.sources)
    is_first = first_samples(samples["source"], samples["row"])
    packed = np.bincount(samples["source"][is_first], minlength=count).tolist()
    pieces = np.bincount(samples["source"][samples["tokens"] > 0], minlength=count).tolist()
    tokens = np.zeros(count, np.int64)
    np.add.at(tokens, samples["source"], samples["tokens"])
    rejects: list[Counter[str]] = [Counter() for _ in ledger.sources]
    for number, _, reject in ledger.rejects:
        rejects[number][reject.reason] += 1
    for i, source in enumerate(ledger.sources):
        yield {
            "name": source.name,
            "form": source.reading.form,
            "settings": dict(source.given),
            "read": ledger.read[i],
            "packed": packed[i],
            "samples": pieces[i],
            "rejected": rejects[i].total(),
            "skipped": ledger.skipped[i],
            "tokens": int(tokens[i]),
            "rejects": dict(rejects[i].most_common()),
            "notes": dict(ledger.notes[i].most_common()),
            "cut_turns": ledger.cut_turns[i],
            "duplicates": ledger.duplicates[i],
        }
