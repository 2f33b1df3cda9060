"""Ways to read a whole data set, each measured beside a plain read of the same bytes.

What a way gives is counted, and has to be what the tables say: none is fast because it leaves something out.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from lmms.train.fit import fitting_model, model_of
from lmms.train.flops import model_cost
from lmms.train.loader import Request, batches
from lmms.train.mixture import Phase
from lmms.train.order import Order, set_packs
from lmms.train.recipe import Recipe, make_recipe
from lmms.train.sets import Sets, make_order, open_sets
from lmms.train.stream import PackReader, Place

_MEASURED_S = 0.25
"""What a measurement takes at least: a way reads the data set as often as that needs."""
_STALL_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Opened:
    """A data set as a run has it."""

    sets: Sets
    order: Order
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Way:
    """One way to read the data set."""

    name: str
    read: Callable[[int], tuple[float, int]]
    """How often -> seconds, and bytes or tokens that came."""
    expected: int
    """Bytes or tokens of reading it once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """What was measured of a way."""

    way: str
    packs_per_s: float
    """The median of the rounds."""
    tokens_per_s: float
    share: float
    """packs_per_s, of that of the plain read just before: the median of the rounds."""
    best_share: float
    """The best round, of the best of the plain read."""


def open_run(sets: Sets, model: str | None, global_packs: int = 8) -> Opened:
    """A data set with its order and recipe for a model; without one, for that which it was built for."""
    (dataset,) = sets.datasets
    hf_config = model_of(fitting_model(model or dataset.manifest.model, dataset).path, "none").hf.config
    order = make_order(sets, Phase(), model_cost(hf_config), 0, global_packs)
    return Opened(sets=sets, order=order, recipe=make_recipe([dataset.manifest], hf_config, "stop"))


def speeds(shards: Path, model: str | None, rounds: int, workers: Sequence[int]) -> list[Speed]:
    """Each way to read, the plain one first; out of memory, since each reads the data set before it is measured."""
    opened = open_run(open_sets([shards]), model)
    packs, tokens = len(opened.order.costs), int(opened.sets.tokens.sum())
    with ExitStack() as held:
        ways = _ways(opened, workers, held)
        passes = {way.name: math.ceil(_MEASURED_S / _seconds(way, 1)) for way in ways}
        found: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                beside = _seconds(ways[0], passes[ways[0].name])
                found[way.name].append((beside, _seconds(way, passes[way.name])))
    best_plain = min(seconds for pairs in found.values() for seconds, _ in pairs)
    return [
        Speed(
            way=name,
            packs_per_s=packs / statistics.median(seconds for _, seconds in pairs),
            tokens_per_s=tokens / statistics.median(seconds for _, seconds in pairs),
            share=statistics.median(beside / seconds for beside, seconds in pairs),
            best_share=best_plain / min(seconds for _, seconds in pairs),
        )
        for name, pairs in found.items()
    ]


def _seconds(way: Way, passes: int) -> float:
    """Seconds to read the data set once."""
    seconds, amount = way.read(passes)
    if amount != passes * way.expected:
        raise RuntimeError(f"{way.name} gave {amount} bytes or tokens, expected {passes} x {way.expected}")
    return seconds / passes


def _ways(opened: Opened, workers: Sequence[int], held: ExitStack) -> list[Way]:
    from streaming import LocalDataset, StreamingDataset

    (dataset,) = opened.sets.datasets
    places = [opened.sets.place(pack) for pack in set_packs(opened.order.sets[0], 0, len(opened.order.costs)).tolist()]
    num_bytes, num_tokens = sum(place.bytes for place in places), int(opened.sets.tokens.sum())
    files = [os.open(Path(dataset.where) / shard.name, os.O_RDONLY) for shard in dataset.shards]
    for file in files:
        held.callback(os.close, file)
    reader = held.enter_context(closing(PackReader(opened.sets.datasets)))
    mapped = LocalDataset(dataset.where)
    streamed = StreamingDataset(local=dataset.where, batch_size=1, shuffle=True)
    return [
        Way(
            "os.pread",
            _timed(lambda: (len(os.pread(files[place.shard], place.bytes, place.offset)) for place in places)),
            num_bytes,
        ),
        Way(
            "PackReader.read_bytes: checked",
            _timed(lambda: (len(reader.read_bytes(place)) for place in places)),
            num_bytes,
        ),
        Way(
            "PackReader.read: checked, decoded",
            _timed(lambda: (len(reader.read(place).input_ids) for place in places)),
            num_tokens,
        ),
        Way(
            "LocalDataset[i]: decoded",
            _timed(lambda: (len(mapped[place.pack]["input_ids"]) for place in places)),
            num_tokens,
        ),
        Way(
            "StreamingDataset: decoded",
            _timed(lambda: (len(sample["input_ids"]) for sample in streamed)),
            num_tokens,
        ),
        *(
            Way(f"batches, {n} loader processes", _batches(opened, places, n), num_tokens) for n in workers
        ),
    ]


def _timed(read: Callable[[], Iterable[int]]) -> Callable[[int], tuple[float, int]]:
    def measure(passes: int) -> tuple[float, int]:
        start = time.perf_counter()
        amount = sum(sum(read()) for _ in range(passes))
        return time.perf_counter() - start, amount

    return measure


def _batches(opened: Opened, places: Sequence[Place], workers: int) -> Callable[[int], tuple[float, int]]:
    """Batches of one pack, as the trainer gets them; the clock starts when each process has made a few."""
    requests = [Request((place,), True, ()) for place in places]

    def measure(passes: int) -> tuple[float, int]:
        reader = PackReader(opened.sets.datasets)
        with closing(batches(reader, opened.recipe, cycle(requests), workers, _STALL_S)) as made:
            for _ in range(3 * workers):
                next(made)
            start = time.perf_counter()
            amount = sum(batch.input_ids.shape[1] for batch in islice(made, passes * len(requests)))
            return time.perf_counter() - start, amount

    return measure
