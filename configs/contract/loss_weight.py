"""What a target token counts in the loss: by the weights of its message and record, and by the rule of the run.

prep sums these weights over every pack, and training gives each token its weight: one module for both. All in float64,
and by operations that IEEE 754 fixes to the last bit, so that the sidecar is the same on every machine.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.loss_rule import TOTALS, LossWeight
from lmms.configs.contract.pack import Pack

_DIVISORS: Mapping[LossWeight, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "token": np.ones_like,
    "conversation": np.positive,
    "sqrt": np.sqrt,
}
"""What the sum M is divided by."""


def span_weights(pack: Pack, loss_weight: LossWeight) -> npt.NDArray[np.float64]:
    """float64 [spans]: what each target token of a span counts."""
    segments, sums = _message_sums(pack)
    return pack.sample_weights[segments] * pack.target_weights / _DIVISORS[loss_weight](sums)[segments]


def total_weights(pack: Pack) -> dict[str, float]:
    """Column of TOTALS -> the sum over the pack's target tokens of what they count."""
    _, sums = _message_sums(pack)
    some = sums > 0
    weights, sums = pack.sample_weights[some], sums[some]
    return {column: math.fsum(weights * (sums / _DIVISORS[rule](sums))) for rule, column in TOTALS.items()}


def _message_sums(pack: Pack) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """(int64 [spans]: the segment of each span, float64 [segments]: M of each conversation, 0 without targets)."""
    segments = np.searchsorted(pack.cu_seqlens, pack.targets[:, 0], side="right") - 1
    lengths = np.diff(pack.targets)[:, 0]
    sums = np.zeros(len(pack.lengths))
    np.add.at(sums, segments, lengths * pack.target_weights)
    return segments, sums
