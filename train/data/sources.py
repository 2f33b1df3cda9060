"""Sources of the tokens of packs, and whether steps mix the sources as well as random order would."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmms.configs.words import short_places
from lmms.train.data.sets import Sets
from lmms.train.data.shards import read_sources

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sources:
    """Tokens of each pack by source: of pack i, tokens[j] of source ids[j] for starts[i] <= j < starts[i + 1]."""

    names: tuple[str, ...]
    """Short names, see short_places; with the number of the set where there are several sets."""
    starts: Int64s
    """[packs + 1]"""
    ids: Int64s
    tokens: Int64s


def join_sources(sets: Sets) -> Sources:
    """The sources of all sets, one set after the other, over the packs of the run."""
    counts = [len(dataset.manifest.sources) for dataset in sets.datasets]
    firsts = np.cumsum([0, *counts])
    several = len(counts) > 1
    starts, ids, tokens = zip(*map(read_sources, sets.datasets), strict=True)
    return Sources(
        names=tuple(
            f"set {k}, {name}" if several else name
            for k, dataset in enumerate(sets.datasets)
            for name in short_places([source["name"] for source in dataset.manifest.sources])
        ),
        starts=np.cumsum(np.concatenate([[0], *map(np.diff, starts)])),
        ids=np.concatenate([set_ids + first for set_ids, first in zip(ids, firsts, strict=False)]),
        tokens=np.concatenate(tokens).astype(np.int64),
    )


def source_tokens(sources: Sources, steps: Int64s) -> Int64s:
    """int64 [steps, sources]: tokens of each source in each step of int64 [steps, packs of a step]."""
    packs = steps.ravel()
    counts = np.diff(sources.starts)[packs]
    ends = np.cumsum(counts)
    entries = np.arange(int(ends[-1])) + np.repeat(sources.starts[packs] - (ends - counts), counts)
    step = np.repeat(np.repeat(np.arange(len(steps)), steps.shape[1]), counts)
    cells = step * len(sources.names) + sources.ids[entries]
    # Sums below 2**53 are exact in float64.
    summed = np.bincount(cells, sources.tokens[entries], len(steps) * len(sources.names))
    return summed.astype(np.int64).reshape(len(steps), -1)


def design_effect(sources: Sources, steps: Int64s) -> float:
    """How uneven the mix of sources is from step to step: 1 as in random order, 0 if every step had the same mix.

    The variance of a step's tokens of each source, summed over the sources, against its expectation if the packs of all
    these steps were drawn into steps at random, without replacement. steps: int64 [steps, packs of a step], two steps
    or more. Source: Kish, Survey Sampling (1965), 8.2.
    """
    packs_a_step = steps.shape[1]
    totals = source_tokens(sources, steps).astype(np.float64)
    variance_seen = ((totals - totals.mean(axis=0)) ** 2).sum(axis=1).mean()
    pool = np.bincount(steps.ravel(), minlength=len(sources.starts) - 1)
    taken = np.repeat(pool, np.diff(sources.starts))
    squares = float((taken * sources.tokens.astype(np.float64) ** 2).sum())
    variance = squares / steps.size - float((totals.sum(axis=0) ** 2).sum()) / steps.size**2
    expected = packs_a_step * (steps.size - packs_a_step) / (steps.size - 1) * variance
    return float(variance_seen / expected) if expected > 0 else 0.0


def design_effects(sources: Sources, steps: Int64s) -> dict[int, float]:
    """design_effect of stretches of 1, 4, 16, ... steps, as long as there are four of them."""
    effects = {}
    length = 1
    while len(steps) // length >= 4:
        stretches = steps[: len(steps) // length * length].reshape(-1, length * steps.shape[1])
        effects[length] = design_effect(sources, stretches)
        length *= 4
    return effects
