"""lmms prep plan: what a build would make of its sources, at several lengths of packs, without writing anything.

All rows are read, or a share of each chunk; samples are counted and not kept. Both plans are made for each length.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.costs import ModelCost, folder_cost
from lmms.configs.errors import BuildError, ConfigError
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.engine.duplicates import settle_duplicates
from lmms.prep.engine.ledger import Ledger, check_filters
from lmms.prep.first_pass import find_input, max_patches_of, read_records_of
from lmms.prep.packing import costs_beyond_tokens, tower_positions
from lmms.prep.planning.balanced import balanced_packs
from lmms.prep.planning.spread import Samples
from lmms.prep.planning.tight import Plan, plan_packs
from lmms.prep.progress import Progress, Report, silent
from lmms.prep.records.forms import DOCUMENT_FORMS
from lmms.prep.sample.frame_prices import CHOICES, Choice, FramePrices

PlanName: TypeAlias = Literal["balanced", "tight"]

RANKS = (8, 64, 512)


@dataclass(frozen=True, slots=True)
class Packing:
    """The packs of one length and plan."""

    seq_len: int
    plan: PlanName
    too_long: int
    """Samples of those read that such a pack does not hold."""
    packs: int
    """For all rows, also where a share was read."""
    fill: float
    """Tokens over the tokens that the packs have room for."""
    deviation: float
    """Standard deviation of the packs' costs over their mean."""
    waiting: Mapping[int, float]
    """Ranks -> the time lost by waiting for the dearest rank, over the time used; one pack a rank, in random order."""


@dataclass(frozen=True, slots=True)
class FrameChoice:
    """What the shards would take with this choice of frames; see the settings of these names."""

    video_frames: Literal["resized", "original"]
    video_encoding: Literal["jpeg", "png"]
    frames: int
    """Bytes of the frames of all videos, for all rows."""
    shards: int
    """Bytes of the shards with these frames, for all rows."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a build would make of its sources."""

    share: float
    """Rows that were read, over all rows; the counts below are of those that were read."""
    read: int
    rejects: Mapping[str, int]
    """Reason -> records; too_long is judged by the longest of the lengths."""
    skipped: int
    lengths: npt.NDArray[np.int32]
    """int32 [samples]: tokens of each."""
    target_tokens: int
    media: int
    patches: int
    bytes: int
    """Bytes of the shards, for all rows."""
    seconds: float
    """Seconds that reading would take, for all rows."""
    measured_videos: int
    """Videos that were measured for `frame_choices`, see prep/sample/frame_prices.py."""
    frame_choices: tuple[FrameChoice, ...]
    """None without videos. The figures of the choice that is set are counted, those of the others measured."""
    packings: tuple[Packing, ...]


def look_ahead(
    config: PrepConfig,
    seq_lens: Sequence[int],
    *,
    ranks: Sequence[int] = RANKS,
    share: float = 1.0,
    report: Report = silent,
    records: Any = None,
) -> Outlook:
    """What a build with these settings would make of its sources, at each of these lengths of a pack.

    share: of the rows, from 0 to 1: the first rows of each chunk. report, records: as in build_shards. config.seq_len,
    out and store are not used. Raises LmmsError.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"the share of rows to read is {share:g}, expected more than 0 and at most 1")
    config = replace(config, seq_len=max(seq_lens))
    times: list[tuple[float, int]] = []

    def reported(progress: Progress) -> None:
        times.append((time.monotonic(), progress.records))
        report(progress)

    config = replace(config, engine="local")
    with TemporaryDirectory(prefix="lmms-plan-") as fetched:
        given = find_input(config, Path(fetched), reported, records)
        cost = folder_cost(given.model.path, config.cost_of)
        ledger, _ = read_records_of(given, config, None, reported, share)
    check_filters(ledger)
    settle_duplicates(ledger, config.duplicates == "drop")
    samples = ledger.all_samples()
    samples = samples[samples["tokens"] > 0]
    if not len(samples):
        reasons = ", ".join(f"{reason} {n}" for reason, n in _reasons(ledger).items()) or "none"
        raise BuildError(f"no record of the {ledger.read.total():,} that were read can be packed; rejected: {reasons}")
    part = ledger.read.total() / max(ledger.rows.total(), 1)
    documents = [i for i, source in enumerate(ledger.sources) if source.reading.form in DOCUMENT_FORMS]
    packings = []
    for seq_len in seq_lens:
        at = replace(config, seq_len=seq_len)
        packings += _packings(samples, documents, at, max_patches_of(at, given.model), cost, ranks, part)
    shards = round(int(samples["bytes"].sum()) / part)
    return Outlook(
        share=part,
        read=ledger.read.total(),
        rejects=_reasons(ledger),
        skipped=ledger.skipped.total(),
        lengths=np.ascontiguousarray(samples["tokens"]),
        target_tokens=int(samples["target_tokens"].sum()),
        media=int(samples["media"].sum()),
        patches=int(samples["patches"].sum()),
        bytes=shards,
        seconds=_seconds(times) / part,
        measured_videos=ledger.prices.videos,
        frame_choices=_frame_choices(ledger.prices, shards, (config.video_frames, config.video_encoding), part),
        packings=tuple(packings),
    )


def _frame_choices(prices: FramePrices, shards: int, chosen: Choice, part: float) -> tuple[FrameChoice, ...]:
    """shards: bytes with the choice that is set."""
    if not prices.stored or not prices.videos:
        return ()
    made = []
    for choice in CHOICES:
        scale = prices.measured[choice] / prices.measured[chosen]
        frames = round(prices.stored / part * scale)
        made.append(FrameChoice(*choice, frames, shards + frames - round(prices.stored / part)))
    return tuple(made)


def _seconds(times: Sequence[tuple[float, int]]) -> float:
    """Seconds of reading, by the reports (time, records), as if what comes before the first records took no time."""
    began, records = next(((at, count) for at, count in times if count), times[-1])
    ended, total = times[-1]
    if total == records:  # one chunk: its time alone is known
        return ended - times[0][0]
    return (ended - began) * total / (total - records)


def _reasons(ledger: Ledger) -> dict[str, int]:
    return dict(Counter(reject.reason for *_, reject in ledger.rejects).most_common())


def _packings(
    samples: npt.NDArray[np.void],
    documents: Sequence[int],
    config: PrepConfig,
    max_patches: int,
    cost: ModelCost,
    ranks: Sequence[int],
    part: float,
) -> list[Packing]:
    """Both plans at one length. documents: numbers of the sources whose long texts are cut, not rejected."""
    cut = _cut(samples, np.isin(samples["source"], documents), config.seq_len)
    fits = (cut["tokens"] <= config.seq_len) & (tower_positions(cut) <= max_patches)
    too_long, cut = int((~fits).sum()), cut[fits]
    columns = (cut["tokens"].astype(np.int32), tower_positions(cut), costs_beyond_tokens(cost, cut))
    size = (config.seq_len, max_patches)
    plans: dict[PlanName, Plan] = {
        "balanced": balanced_packs(Samples(*columns), *size, config.seed, config.more_packs),
        "tight": plan_packs(columns[0], columns[1], *size, config.seed),
    }
    packings = []
    for name, plan in plans.items():
        weights = columns[0] + columns[2].astype(np.float64)  # as int32 a sum may not fit
        costs = np.bincount(plan.pack_of, weights=weights, minlength=plan.num_packs).astype(np.float64)
        packings.append(
            Packing(
                seq_len=config.seq_len,
                plan=name,
                too_long=too_long,
                packs=round(plan.num_packs / part),
                fill=int(columns[0].sum()) / (max(plan.num_packs, 1) * config.seq_len),
                deviation=float(costs.std() / costs.mean()) if len(costs) else 0.0,
                waiting={count: expected_waiting(costs, count) for count in ranks},
            )
        )
    return packings


def _cut(samples: npt.NDArray[np.void], is_document: npt.NDArray[np.bool_], seq_len: int) -> npt.NDArray[np.void]:
    """The samples, those of long texts as the pieces that a pack holds. Their targets are shared out."""
    pieces = np.where(is_document, -(-samples["tokens"] // seq_len), 1)
    cut = np.repeat(samples, pieces)
    number = np.arange(len(cut)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    of_document = np.repeat(is_document, pieces)
    left = cut["tokens"] - number * seq_len
    cut["target_tokens"][of_document] //= np.repeat(pieces, pieces)[of_document]
    cut["tokens"][of_document] = np.minimum(left, seq_len)[of_document]
    return cut


def expected_waiting(costs: npt.NDArray[np.float64], ranks: int) -> float:
    """The dearest of so many packs drawn at random, over the mean pack, less 1: the time lost by waiting."""
    if not len(costs):
        return 0.0
    at_most = (np.arange(len(costs) + 1) / len(costs)) ** ranks
    return float((np.sort(costs) * np.diff(at_most)).sum() / costs.mean() - 1)
