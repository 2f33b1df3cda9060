"""A computation in bf16 beside the same in fp32."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """How far apart the two are."""

    name: str
    errors: dict[str, float]
    """Of each tensor, see relative_error."""
    tolerances: dict[str, float]
    passed: bool


def check(name: str, errors: Mapping[str, float], tolerances: Mapping[str, float]) -> Check:
    """Passed where every error is a number within its tolerance."""
    passed = all(errors[tensor] <= tolerance for tensor, tolerance in tolerances.items())
    return Check(name=name, errors=dict(errors), tolerances=dict(tolerances), passed=passed)


def relative_error(found: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Norm of the difference over the norm of what was expected, or over `floor` where that is larger; in fp32."""
    size = max(float(expected.float().norm()), floor)
    return float((found.float() - expected.float()).norm()) / size
