"""The bytes that a rank needs for training, by component: arithmetic on shapes and on a traced pass."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmms.train.plan.trace import Peak

ALLOWANCE_BYTES, ALLOWANCE_SHARE = int(1.5 * 2**30), 0.05
"""Assumed, not computed: bytes for the CUDA context, libraries and communication; a share that the allocator loses."""

COMPONENTS: Mapping[str, str] = {
    "weights": "master weights",
    "optimizer": "optimizer states",
    "gradients": "gradients",
    "gathered": "gathered weights",
    "vision": "kept by the vision tower",
    "audio": "kept by the audio tower",
    "llm": "kept by the language model",
    "loss": "LM head and loss",
    "backward": "working memory of backward",
    "batch": "batches",
    "allowance": "allowance (assumed)",
}
"""Name in JSON -> name for a person."""


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """Bytes that a rank holds from the first step to the last."""

    weights: int
    optimizer: int
    gradients: int
    """Bytes when all gradients of a step are there."""


def local_elements(parameter: Tensor, rank: int, ranks: int) -> int:
    """Elements that a rank owns. FSDP2 gives a rank ceil(rows / ranks) rows (dimension 0), the last ranks fewer."""
    rows = parameter.shape[0]
    each = -(-rows // ranks)
    return max(min(rows - rank * each, each), 0) * (parameter.numel() // rows)


def state_bytes(
    parameters: Iterable[nn.Parameter],
    rank: int,
    ranks: int,
    optimizer_bytes: Callable[[Tensor, int], int],
) -> States:
    """States of these parameters on one rank. Frozen parameters have weights alone.

    optimizer_bytes: (trained parameter, number of its elements on the rank) -> bytes, see bytes_by_rule.
    """
    weights = optimizer = gradients = 0
    for parameter in parameters:
        local = local_elements(parameter, rank, ranks)
        weights += local * parameter.element_size()
        if parameter.requires_grad:
            optimizer += optimizer_bytes(parameter, local)
            gradients += local * parameter.element_size()
    return States(weights=weights, optimizer=optimizer, gradients=gradients)


def gathered_bytes(
    moment: Peak, units: Sequence[Sequence[nn.Parameter]], element_size: int, ranks: int, reshard: bool = True
) -> int:
    """Bytes of weights in the compute type, gathered from all ranks: the last unit (outside blocks) and the largest
    block; without reshard all blocks whose backward is not done.

    ranks: the number of ranks that a copy of the weights is sharded over. With several ranks the largest block counts
    twice, since the next block arrives while a block is in use; without reshard that ends with forward.
    """
    *of_blocks, root = (sum(parameter.numel() for parameter in unit) for unit in units)
    arriving = max(of_blocks) if ranks > 1 else 0
    if reshard:
        return element_size * (root + max(of_blocks) + arriving)
    return element_size * (root + sum(of_blocks) - moment.done + (arriving if moment.forward else 0))


def copied_bytes(units: Sequence[Sequence[nn.Parameter]], dtype: torch.dtype, reshard: bool = True) -> int:
    """Bytes of copies in the compute type, on one rank alone, of weights that are kept in another type."""
    *of_blocks, root = (
        dtype.itemsize * sum(parameter.numel() for parameter in unit if parameter.dtype != dtype) for unit in units
    )
    return root + (max(of_blocks) if reshard else sum(of_blocks))


def rank_memory(
    states: States, gathered: Callable[[Peak], int], moments: Sequence[Peak], batch: int, *, accumulates: bool
) -> dict[str, int]:
    """Bytes by component, see COMPONENTS, at the moment that needs most.

    gathered: see gathered_bytes and copied_bytes. batch: bytes of a batch; the next batch arrives while one is in use.
    accumulates: a step has several passes, so all gradients are there from the second pass on.
    """
    all_reduced = moments[-1].reduced

    def components(moment: Peak) -> dict[str, int]:
        done = 1.0 if accumulates else moment.reduced / max(all_reduced, 1)
        return {
            "weights": states.weights,
            "optimizer": states.optimizer,
            "gradients": int(states.gradients * done) + moment.reducing,
            "gathered": gathered(moment),
            **{kind: moment.used.get(kind, 0) for kind in ("vision", "audio", "llm", "loss", "backward")},
            "batch": 2 * batch,
        }

    peak = max(map(components, moments), key=lambda sizes: sum(sizes.values()))
    return {**peak, "allowance": ALLOWANCE_BYTES + int(ALLOWANCE_SHARE * sum(peak.values()))}
