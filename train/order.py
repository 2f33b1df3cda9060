"""position -> the packs of a step: pure integers, the same on every rank.

The sequence of packs is endless: epoch e has positions [e * T, (e + 1) * T) of T packs, in its own hashed permutation.
Global step t is the packs at [p, p + G), wherever epochs end: nothing is dropped, repeated or padded. Rank r of R takes
every R-th of them, so the set of a step depends on neither ranks, accumulation nor workers, and the only state of a run
is p, the number of packs trained. An epoch's order is made when it is first asked for (10 M packs: 2 s).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from lmms.configs.errors import ConfigError
from lmms.configs.hashing import key64, permutation

ORDER_VERSION = "lmms/order/v1"
"""Part of every key, and of a checkpoint. Any change of the sequence is a new version."""

PackIds = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """The identity of a sequence of packs. The size of a step may change in the middle of a run."""

    num_packs: int
    """Packs of the data set: an epoch."""
    seed: int
    global_packs: int
    """Packs of an optimizer step, over all ranks and micro-steps."""

    def __post_init__(self) -> None:
        if self.num_packs < 1 or self.global_packs < 1:
            raise ConfigError(
                f"{self.global_packs} packs a step of {self.num_packs} packs; expected at least 1 of each"
            )


def step_packs(order: Order, position: int) -> PackIds:
    """int64 [global_packs]: the packs of the step that starts after `position` trained packs."""
    end = position + order.global_packs
    epochs = range(position // order.num_packs, (end - 1) // order.num_packs + 1)
    parts = []
    for epoch in epochs:
        start = epoch * order.num_packs
        packs = _epoch_packs(order.num_packs, order.seed, epoch)
        parts.append(packs[max(position - start, 0) : end - start])
    return np.concatenate(parts)


def rank_share(packs: PackIds, rank: int, world: int) -> PackIds:
    """int64 [packs / world]: the packs of one rank out of a step's."""
    return packs[rank::world]


def micro_steps(packs: PackIds, rank: int, world: int, micro_packs: int) -> list[list[int]]:
    """The packs of each forward pass of one rank in a step. Raises ConfigError unless all ranks have equal passes."""
    if len(packs) % (world * micro_packs):
        raise ConfigError(
            f"data.global_packs is {len(packs)}, not a multiple of {world * micro_packs} "
            f"({world} ranks x data.micro_packs {micro_packs}); change one of them"
        )
    return rank_share(packs, rank, world).reshape(-1, micro_packs).tolist()


@lru_cache(maxsize=2)
def _epoch_packs(num_packs: int, seed: int, epoch: int) -> PackIds:
    """int64 [num_packs], read-only: an epoch's order. Two are kept, for the steps that cross from one to the next."""
    packs = permutation(num_packs, key64(ORDER_VERSION, "packs", seed, epoch))
    packs.flags.writeable = False
    return packs
