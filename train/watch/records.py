"""The records that a step of a run trained on."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from lmms.configs.errors import DatasetError, TrainError
from lmms.configs.words import short_places
from lmms.train.data.order import by_cost, step_packs
from lmms.train.data.phases import order_of, phase_of_step, read_phases
from lmms.train.data.sets import Sets, hashes, open_sets, packs_digest
from lmms.train.data.shards import PackReader
from lmms.train.watch.metrics import METRICS_NAME, damaged_line, metrics_lines

_Row = tuple[int, int, int, int, int]
"""Pack, segment, source, row, tokens of a conversation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One conversation that a step trained on."""

    set: int
    pack: int
    """Pack number within its set."""
    segment: int
    """Number of the conversation within its pack."""
    source: str
    """Place of the source, as prep was told."""
    name: str
    """Short name of the source, as in metrics.jsonl."""
    row: int
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecords:
    """What a step of a run trained on."""

    position: int
    """Packs trained before the step."""
    packs: int
    digest: str
    """Digest of the packs in the shards, see sets.packs_digest. 16 hexadecimal digits."""
    is_logged: bool
    """Whether metrics.jsonl has a line of this step; its digest is then the same."""
    shards: tuple[str, ...]
    """Place of each set."""
    records: tuple[Record, ...]
    """Records pack by pack, the most expensive pack first."""


def records_of(run: Path, step: int) -> StepRecords:
    """The records that a step trained on, from the output folder of a run and its shards. Steps count from 1.

    TrainError for a folder without a run, or a step that cannot exist. DatasetError where the shards are not the shards
    of the run, by their index or by the digest that the step logged.
    """
    phases = read_phases(run)
    if step < 1:
        raise TrainError(f"there is no step {step}; expected 1 or more")
    phase, position = phase_of_step(phases, step)
    sets = open_sets([share.shards for share in phase.sets])
    for share, dataset in zip(phase.sets, sets.datasets, strict=True):
        if share.index != dataset.index_hash:
            raise DatasetError(
                f"{dataset.where} is not what {run} trained on: the hash of its index is {dataset.index_hash},"
                f" expected {share.index}; put the shards of the run back"
            )
    order = order_of(sets, phase)
    packs = by_cost(order, step_packs(order, position))
    digest, logged = f"{packs_digest(hashes(sets)[packs]):016x}", _logged_digest(run, step)
    if logged not in (None, digest):
        raise DatasetError(
            f"step {step} of {run} logged the digest {logged}, these shards give {digest}: they are not those it"
            " trained on, or another order was; put the shards and the lmms of the run back"
        )
    return StepRecords(
        position=position,
        packs=len(packs),
        digest=digest,
        is_logged=logged is not None,
        shards=tuple(dataset.where for dataset in sets.datasets),
        records=tuple(_records(sets, packs.tolist())),
    )


def _logged_digest(run: Path, step: int) -> str | None:
    path = run / METRICS_NAME
    lines = metrics_lines(run)
    for number, line in enumerate(lines, 1):
        if "digest" not in line:
            raise damaged_line(path, number, KeyError("digest"))
    digests = {line["step"]: str(line["digest"]) for line in lines}
    if digests and step > max(digests):
        raise TrainError(
            f"step {step} was not taken: {path} ends with step {max(digests)}; for what comes see `lmms inspect order`"
        )
    return digests.get(step)


def _records(sets: Sets, packs: Sequence[int]) -> list[Record]:
    """The conversations of these packs, as often as a pack is among them."""
    by_pack: dict[int, list[Record]] = {pack: [] for pack in packs}
    for k, dataset in enumerate(sets.datasets):
        first, end = sets.first_packs[k : k + 2].tolist()
        set_packs = [pack - first for pack in by_pack if first <= pack < end]
        places = [source["name"] for source in dataset.manifest.sources]
        names = short_places(places)
        for pack, segment, source, row, tokens in _pack_rows(sets, k, set_packs):
            of_source = {"source": places[source], "name": names[source]}
            record = Record(set=k, pack=pack, segment=segment, row=row, tokens=tokens, **of_source)
            by_pack[first + pack].append(record)
    return [record for pack in packs for record in sorted(by_pack[pack], key=lambda record: record.segment)]


def _pack_rows(sets: Sets, number: int, packs: Sequence[int]) -> Iterator[_Row]:
    """Rows from the packs themselves: samples.parquet is in the order read, and is read whole even for a few packs."""
    with closing(PackReader([sets.datasets[number]])) as reader:
        for i in packs:
            pack = reader.read(sets.sidecars[number].place(i))
            for segment, (sample, tokens) in enumerate(zip(pack.samples.tolist(), pack.lengths.tolist(), strict=True)):
                source, row = sample
                yield i, segment, source, row, tokens
