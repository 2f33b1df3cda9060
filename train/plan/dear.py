"""The packs that stay dear, and why: what one sample alone costs more than the mean pack, no plan can hide."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.costs import ModelCost
from lmms.configs.contract.pack import Pack
from lmms.configs.stores.store import LocalStore
from lmms.train.data.sets import Sets
from lmms.train.data.shards import PackReader

_ABOVE = 1.05
_MOST_PACKS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class DearPack:
    """A pack that costs more than others, and the dearest sample in the pack."""

    pack: int
    """Number of the pack in the run."""
    cost: float
    """Cost of the pack over that of the mean pack."""
    source: str
    row: int
    sample_cost: float
    """Cost of the sample over that of the mean pack."""
    tokens: int
    """Tokens of the sample."""
    pictures: int
    """Pictures of the sample."""
    max_pixels: int | None
    """Largest area of a picture, in pixels, with which the sample alone would cost no more than the mean pack; None
    where the sample costs no more as it is, or would cost more without pictures."""


def dear_packs(sets: Sets, costs: npt.NDArray[np.int64], cost: ModelCost) -> Iterator[DearPack]:
    """The dearest packs of folders on this machine: those that cost 5 % more than the mean, and at most five of them.

    costs: int64 [packs of all sets], see costs.table_costs. Only these packs are read.
    """
    mean = float(costs.mean())
    reader = PackReader(sets.datasets)
    for number in np.argsort(-costs, kind="stable")[:_MOST_PACKS].tolist():
        place = sets.place(number)
        dataset = sets.datasets[place.set]
        if costs[number] < _ABOVE * mean or not isinstance(dataset.store, LocalStore):
            continue
        pack = reader.read(place)
        merge = dataset.manifest.vision.merge_size if dataset.manifest.vision else 1
        samples = list(_samples(pack, merge))
        sample_costs = [_cost(cost, sample) for sample in samples]
        dearest = int(np.argmax(sample_costs))
        source, row = pack.samples[dearest].tolist()
        patches = _fitting_patches(cost, samples[dearest], mean)
        yield DearPack(
            pack=number,
            cost=float(costs[number] / mean),
            source=dataset.manifest.sources[source]["name"],
            row=row,
            sample_cost=sample_costs[dearest] / mean,
            tokens=samples[dearest].tokens,
            pictures=len(samples[dearest].frames),
            max_pixels=patches * dataset.manifest.vision.patch_size**2 if patches and dataset.manifest.vision else None,
        )
    reader.close()


@dataclass(frozen=True, slots=True)
class _Sample:
    tokens: int
    targets: int
    frames: tuple[tuple[int, int], ...]
    """(frames, patches of a frame) of each picture."""
    patches_a_token: int

    def with_at_most(self, patches: int) -> "_Sample":
        """The sample if no frame had more patches."""
        smaller = tuple((t, min(n, patches)) for t, n in self.frames)
        fewer = sum(t * n for t, n in self.frames) - sum(t * n for t, n in smaller)
        return _Sample(self.tokens - fewer // self.patches_a_token, self.targets, smaller, self.patches_a_token)


def _samples(pack: Pack, merge: int) -> Iterator[_Sample]:
    bounds = pack.cu_seqlens.tolist()
    for start, end in pairwise(bounds):
        inside = (pack.targets[:, 0] >= start) & (pack.targets[:, 0] < end)
        grids = [media.grid_thw for media in pack.media if start <= media.start < end]
        frames = tuple((t, h * w) for t, h, w in grids)
        yield _Sample(end - start, int(np.diff(pack.targets[inside]).sum()), frames, merge**2)


def _cost(cost: ModelCost, sample: _Sample) -> float:
    """Operations of a sample, as costs.table_costs counts them."""
    return (
        cost.token * sample.tokens
        + cost.target * sample.targets
        + cost.squared_length * sample.tokens**2
        + (cost.patch + cost.squared_window * cost.window**2) * sum(t * n for t, n in sample.frames)
        + cost.squared_image * sum(t * n**2 for t, n in sample.frames)
    )


def _fitting_patches(cost: ModelCost, sample: _Sample, most_cost: float) -> int | None:
    """The most patches of a frame with which the sample costs at most most_cost; None if that changes nothing."""
    low, high = 0, max((n for _, n in sample.frames), default=0)
    if _cost(cost, sample) <= most_cost or _cost(cost, sample.with_at_most(0)) > most_cost:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _cost(cost, sample.with_at_most(middle)) <= most_cost else (low, middle - 1)
    return low
