"""The sets of shards of a run, their packs numbered one after the other, and the order over them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from lmms.configs.contract.costs import ModelCost
from lmms.configs.contract.hashing import mix64
from lmms.configs.contract.loss_rule import TOTALS, LossWeight
from lmms.configs.contract.manifest import Dataset, open_dataset
from lmms.configs.errors import ConfigError
from lmms.configs.settings.data import ShareConfig
from lmms.configs.stores.store import Cache, shown
from lmms.train.data.costs import table_costs
from lmms.train.data.mixture import Phase, share_turns
from lmms.train.data.order import Order, SetOrder
from lmms.train.data.shards import Place, Sidecar, read_sidecar


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sets:
    """What the sidecars of all sets say, side by side: a column of values a pack, in the order of the sets."""

    datasets: tuple[Dataset, ...]
    sidecars: tuple[Sidecar, ...]
    first_packs: npt.NDArray[np.int64]
    """[sets + 1]: the number of each set's pack 0, and of all packs."""
    tokens: npt.NDArray[np.int32]
    target_tokens: npt.NDArray[np.int32]
    target_weight: npt.NDArray[np.float64]
    """Sum of what the targets count by the run's loss_weight."""
    visual_tokens: npt.NDArray[np.int32]
    """Image placeholders: a token for every merge_size x merge_size patches."""
    sound_tokens: npt.NDArray[np.int32]
    """Placeholders of sounds."""

    def set_of(self, pack: int) -> int:
        """The set that this pack of the run belongs to."""
        return int(np.searchsorted(self.first_packs, pack, side="right")) - 1

    def place(self, pack: int) -> Place:
        """The place of this pack of the run."""
        number = self.set_of(pack)
        return self.sidecars[number].place(pack - int(self.first_packs[number]), number)


def open_sets(places: Sequence[str | Path], cache: Cache | None = None, retry_s: float = 120.0) -> Sets:
    """The sets of a run, each found complete."""
    return read_sets(find_sets(places, cache, retry_s))


def find_sets(places: Sequence[str | Path], cache: Cache | None = None, retry_s: float = 120.0) -> list[Dataset]:
    """The data sets in these places, each found complete, without their sidecars."""
    datasets = [open_dataset(place, cache=cache, retry_s=retry_s) for place in places]
    hashes = [dataset.index_hash for dataset in datasets]
    for place, index in zip(places, hashes, strict=True):
        if hashes.count(index) > 1:
            raise ConfigError(f"the shards {shown(str(place))} are named twice; give them one larger share")
    return datasets


def read_sets(datasets: Sequence[Dataset], loss_weight: LossWeight = "token") -> Sets:
    """The data sets of a run with what their sidecars say."""
    return join_sets(datasets, [read_sidecar(dataset) for dataset in datasets], loss_weight)


def join_sets(datasets: Sequence[Dataset], sidecars: Sequence[Sidecar], loss_weight: LossWeight = "token") -> Sets:
    """The sets of a run as one value."""
    return Sets(
        datasets=tuple(datasets),
        sidecars=tuple(sidecars),
        first_packs=np.cumsum([0, *map(len, sidecars)]),
        tokens=_joined([sidecar.tokens for sidecar in sidecars]),
        target_tokens=_joined([sidecar.target_tokens for sidecar in sidecars]),
        target_weight=_joined([getattr(sidecar, TOTALS[loss_weight]) for sidecar in sidecars]),
        visual_tokens=_joined(
            [sidecar.patches // _patches_a_token(dataset) for dataset, sidecar in zip(datasets, sidecars, strict=True)]
        ),
        sound_tokens=_joined([sidecar.sound_tokens for sidecar in sidecars]),
    )


def make_order(sets: Sets, phase: Phase, cost: ModelCost, seed: int, global_packs: int) -> Order:
    """The order of a run over its sets."""
    costs = _joined([table_costs(cost, sidecar).sum(axis=0) for sidecar in sets.sidecars])
    return Order(
        sets=tuple(
            SetOrder(
                shard_packs=np.array([shard.samples for shard in dataset.shards], np.int64),
                costs=costs[start:end],
                seed=seed,
                name=dataset.index_hash,
                group=phase.group,
            )
            for dataset, start, end in zip(sets.datasets, sets.first_packs, sets.first_packs[1:], strict=False)
        ),
        phase=phase,
        costs=costs,
        global_packs=global_packs,
    )


def packs_digest(xxh3: npt.NDArray[np.uint64]) -> int:
    """What was consumed, whatever the order: the sum, modulo 2**64, of the mixed hashes of these packs' bytes."""
    return int(mix64(xxh3).sum(dtype=np.uint64))


def mixture_turns(sets: Sets, given: Sequence[ShareConfig]) -> tuple[int, ...]:
    """Turns of each set. By weight and by tokens, the sets' tokens stand in these shares; by epochs, their packs do."""
    packs = [len(sidecar) for sidecar in sets.sidecars]
    mean_tokens = [sidecar.tokens.mean(dtype=np.float64) for sidecar in sets.sidecars]
    return share_turns(
        [
            share.epochs * packs[k] if share.epochs else (share.weight or share.tokens or 0.0) / mean_tokens[k]
            for k, share in enumerate(given)
        ]
    )


def pass_packs(sets: Sets, given: Sequence[ShareConfig]) -> float:
    """Packs of one pass over the shards; over a mixture by tokens or epochs, the packs that the mixture asks for."""
    return sum(
        share.epochs * len(sidecar)
        if share.epochs
        else share.tokens / float(sidecar.tokens.mean(dtype=np.float64))
        if share.tokens
        else len(sidecar)
        for share, sidecar in zip(given, sets.sidecars, strict=True)
    )


def pack_tokens(sets: Sets, turns: Sequence[int]) -> float:
    """Mean tokens of a pack over a run with these turns."""
    means = [float(sidecar.tokens.mean(dtype=np.float64)) for sidecar in sets.sidecars]
    return sum(mean * turn for mean, turn in zip(means, turns, strict=True)) / sum(turns)


def costs_digest(cost: ModelCost) -> str:
    """A hash of the cost model: with the same sets, the same hash means the same costs."""
    # A model that hears nothing has the hash of versions without sounds.
    units = {name: value for name, value in asdict(cost).items() if value or "sound" not in name}
    return xxhash.xxh3_64_hexdigest(repr(sorted(units.items())).encode())


def _patches_a_token(dataset: Dataset) -> int:
    vision = dataset.manifest.vision
    return vision.merge_size**2 if vision else 1


def _joined(columns: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return columns[0] if len(columns) == 1 else np.concatenate(columns)


def hashes(sets: Sets) -> npt.NDArray[np.uint64]:
    """uint64 [packs of all sets]: the xxh3 of each pack's bytes."""
    return np.concatenate([sidecar.xxh3 for sidecar in sets.sidecars])
