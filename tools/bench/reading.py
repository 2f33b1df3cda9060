"""Ways to read a whole data set, each measured next to a plain read of the same bytes.

The bytes or tokens of a way are counted, and have to be those of the tables: no way is fast because it skips something.
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

from lmms.train.batch.loader import batches
from lmms.train.batch.recipe import Recipe, make_recipe
from lmms.train.data.mixture import Phase
from lmms.train.data.order import Order, set_packs
from lmms.train.data.sets import Sets, make_order, open_sets
from lmms.train.data.shards import PackReader, Place, Request
from lmms.train.model.flops import model_cost
from lmms.train.model.folder import model_of
from lmms.train.plan.fit import fitting_model

_MEASURED_S = 0.1
"""The least seconds of a measurement: a way reads the data set as often as needed for that."""
_LEAST_ROUNDS = 3
_STALL_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Opened:
    """A data set with its order and recipe, as in a run."""

    sets: Sets
    order: Order
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Way:
    """One way to read the data set."""

    name: str
    read: Callable[[int], tuple[float, int]]
    """Number of passes over the data set -> seconds, and bytes or tokens that were read."""
    expected: int
    """Bytes or tokens of one pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """The speed of a way."""

    way: str
    rounds: int
    """The number of measurements; the plain read is measured right before each."""
    packs_per_s: float
    """The median of the rounds."""
    tokens_per_s: float
    share: float
    """packs_per_s over that of the plain read: the median of the rounds."""
    best_share: float
    """The same ratio for the best measurements of this way and of the plain read."""


def open_run(sets: Sets, global_packs: int) -> Opened:
    """A data set with its order and recipe, for the model of its manifest."""
    (dataset,) = sets.datasets
    model = model_of(fitting_model(dataset.manifest.model, dataset).path, "none")
    order = make_order(sets, Phase(), model_cost(model), 0, global_packs)
    return Opened(sets=sets, order=order, recipe=make_recipe([dataset.manifest], model.hf.config, "stop"))


def speeds(shards: Path, seconds: float, workers: Sequence[int]) -> list[Speed]:
    """The speed of each way to read, the plain read first; the data are in memory, since a way first reads unmeasured.

    seconds: the least time for which each way is measured.
    """
    opened = open_run(open_sets([shards]), 1)
    with ExitStack() as resources:
        ways = _ways(opened, workers, resources)
        passes = [math.ceil(_MEASURED_S / _seconds(way, 1)) for way in ways]
        rounds = [_rounds(way, often, ways[0], passes[0], seconds) for way, often in zip(ways, passes, strict=True)]
    packs, tokens = len(opened.order.costs), int(opened.sets.tokens.sum())
    return [
        Speed(
            way=way.name,
            rounds=len(seconds_of_way),
            packs_per_s=packs / statistics.median(seconds_of_way),
            tokens_per_s=tokens / statistics.median(seconds_of_way),
            share=statistics.median(before / after for before, after in zip(plain, seconds_of_way, strict=True)),
            best_share=min(plain) / min(seconds_of_way),
        )
        for way, (plain, seconds_of_way) in zip(ways, rounds, strict=True)
    ]


def _rounds(way: Way, passes: int, plain: Way, plain_passes: int, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds to read the data set once: by the plain read and by a way, in turn."""
    before, after = list[float](), list[float]()
    end = time.perf_counter() + seconds
    while len(after) < _LEAST_ROUNDS or time.perf_counter() < end:
        before.append(_seconds(plain, plain_passes))
        after.append(_seconds(way, passes))
    return before, after


def _seconds(way: Way, passes: int) -> float:
    """Seconds to read the data set once."""
    seconds, amount = way.read(passes)
    if amount != passes * way.expected:
        raise RuntimeError(f"{way.name} gave {amount} bytes or tokens, expected {passes} x {way.expected}")
    return seconds / passes


def _ways(opened: Opened, workers: Sequence[int], resources: ExitStack) -> list[Way]:
    from streaming import LocalDataset, StreamingDataset

    (dataset,) = opened.sets.datasets
    places = [opened.sets.place(pack) for pack in set_packs(opened.order.sets[0], 0, len(opened.order.costs)).tolist()]
    num_bytes, num_tokens = sum(place.bytes for place in places), int(opened.sets.tokens.sum())
    files = [os.open(Path(dataset.where) / shard.name, os.O_RDONLY) for shard in dataset.shards]
    for file in files:
        resources.callback(os.close, file)
    reader = resources.enter_context(closing(PackReader(opened.sets.datasets)))
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
        *(Way(f"batches, {n} loader processes", _batches(opened, places, n), num_tokens) for n in workers),
    ]


def _timed(read: Callable[[], Iterable[int]]) -> Callable[[int], tuple[float, int]]:
    def measure(passes: int) -> tuple[float, int]:
        start = time.perf_counter()
        amount = sum(sum(read()) for _ in range(passes))
        return time.perf_counter() - start, amount

    return measure


def _batches(opened: Opened, places: Sequence[Place], workers: int) -> Callable[[int], tuple[float, int]]:
    """A measurement of batches of one pack, as in the trainer; it starts when each process has made a few batches."""
    requests = [Request((place,), True) for place in places]

    def measure(passes: int) -> tuple[float, int]:
        reader = PackReader(opened.sets.datasets)
        with closing(batches(reader, opened.recipe, cycle(requests), workers, _STALL_S)) as made:
            for _ in range(3 * workers):
                next(made)
            start = time.perf_counter()
            amount = sum(batch.input_ids.shape[1] for batch in islice(made, passes * len(requests)))
            return time.perf_counter() - start, amount

    return measure
