"""What a record says about its loss: weights, and the flags of other systems, each read as what it says.

weight, loss_weight, loss_scale   a number: the weight of each token of the turn
loss, train, loss_mask            true or 1: the turn is learned
mask                              true or 1: the turn is not learned
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lmms.configs.contract.pack import LEAST_WEIGHT, MOST_WEIGHT
from lmms.configs.settings.sources import Targets
from lmms.prep.records.strict_json import kind_of
from lmms.prep.reject import Reject

_NUMBERS = ("weight", "loss_weight", "loss_scale")
SWITCHES = {"loss": True, "train": True, "loss_mask": True, "mask": False}
"""Flag -> whether true says that the turn is learned."""
WEIGHT_KEYS = (*_NUMBERS, *SWITCHES)
RECORD_FLAGS = (*_NUMBERS[1:], *SWITCHES)
"""Columns of a record that speak of its loss like `weight`, if they hold a number, or true or false for a switch."""


def parse_weight(holder: Mapping[str, Any], key: str, place: str) -> float | None:
    """The number under a key of a record or message; None where there is none. Raises Reject."""
    weight = holder.get(key)
    if weight is None:
        return None
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not (weight == 0 or LEAST_WEIGHT <= weight <= MOST_WEIGHT):
        given = repr(weight)[:40] if is_number else kind_of(weight)
        expected = f"expected a number, 0 or from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}"
        raise Reject("bad_weight", f"{key} is {given}; {expected}", place)
    return float(weight)


def is_record_flag(column: Any, value: Any) -> bool:
    """Whether a column of a record speaks of its loss: one of RECORD_FLAGS; but a `loss` of 0.7 is a measurement."""
    if column in SWITCHES:
        return isinstance(value, bool)
    return column in RECORD_FLAGS and isinstance(value, int | float) and not isinstance(value, bool)


def record_weight(raw: Mapping[str, Any]) -> float:
    """The weight of a whole record, above 0. Raises Reject, also for a record that is not to be learned."""
    flags = {column: value for column, value in raw.items() if is_record_flag(column, value)}
    given = ("weight", *(column for column in flags if column in _NUMBERS))
    numbers = {column: w for column in given if (w := parse_weight(raw, column, column)) is not None}
    switches = {column: value == SWITCHES[column] for column, value in flags.items() if column in SWITCHES}
    says = {**{column: weight > 0 for column, weight in numbers.items()}, **switches}
    if len(set(numbers.values())) > 1 or len(set(says.values())) > 1:
        shown = ", ".join(f"{column} {raw[column]!r}" for column in says)
        raise Reject("conflicting_weights", f"the columns {shown} contradict each other", next(iter(says)))
    off = next((column for column, learned in says.items() if not learned), None)
    if off:
        raise Reject("no_target_tokens", f"`{off}` is {raw[off]!r}: nothing of the record is to be learned", off)
    return next(iter(numbers.values()), 1.0)


def scaled_weight(weight: float, factor: float) -> float:
    """The weight of a record by that of its source. Raises Reject."""
    scaled = weight * factor
    if not LEAST_WEIGHT <= scaled <= MOST_WEIGHT:
        message = f"weight is {weight:g}, with that of the source {scaled:g}; expected"
        raise Reject("bad_weight", f"{message} {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}", "weight")
    return scaled


def message_weight(message: Mapping[str, Any], is_learned: bool, place: str) -> float:
    """The weight of a turn by its flags. is_learned: whether turns of its role are learned. Raises Reject.

    A turn that is not learned may have the weight 0 or 1, which many exports write for every turn.
    """
    numbers = {key: w for key in _NUMBERS if (w := parse_weight(message, key, f"{place}.{key}")) is not None}
    switches = {key: _switch(message[key], key, place) for key in SWITCHES if message.get(key) is not None}
    says = {**{key: weight > 0 for key, weight in numbers.items()}, **switches}
    if len(set(numbers.values())) > 1 or len(set(says.values())) > 1:
        shown = ", ".join(f"{key} {message[key]!r}" for key in says)
        raise Reject("conflicting_weights", f"the flags of the turn contradict each other: {shown}", place)
    weight = next(iter(numbers.values()), 1.0)
    if is_learned:
        return weight if all(switches.values()) else 0.0
    if weight not in (0, 1):
        key = next(iter(numbers))
        given = f"{key} {weight:g} of a {message.get('role')} turn, which is not learned"
        raise Reject("bad_weight", f"{given}; expected none, or targets=all", f"{place}.{key}")
    asked = next((key for key, learned in switches.items() if learned), None)
    if asked:
        given = f"{asked} asks to learn a {message.get('role')} turn, but only assistant turns are learned"
        raise Reject("conflicting_weights", f"{given}; set targets=all", f"{place}.{asked}")
    return 0.0


def learned_weights(roles: Sequence[str], weights: Sequence[float], targets: Targets) -> list[float]:
    """The weight of each turn in the loss, after the choice of targets."""
    if targets != "last":
        return list(weights)
    last = max((i for i, role in enumerate(roles) if role == "assistant"), default=-1)
    return [weight if i == last else 0.0 for i, weight in enumerate(weights)]


def _switch(value: Any, key: str, place: str) -> bool:
    if value not in (0, 1) or not isinstance(value, int | float):
        raise Reject("bad_weight", f"{key} is {kind_of(value)}, expected true, false, 0 or 1", f"{place}.{key}")
    return bool(value) == SWITCHES[key]
