"""torch.compile, block by block: blocks of a kind share one graph, which takes seconds to make and not minutes.

Shapes are fixed (see padding.py), so every shape of a batch is compiled once. Recomputation goes inside the compiled
function, where the compiler sees it; FSDP2's hooks and the others stay outside. So the order is: patch, LoRA,
checkpoint, compile, shard.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters

_MOST_SHAPES = 64
"""Of one kind of block; torch gives up after 8."""


def compile_blocks(blocks: Sequence[nn.Module], backend: str = "inductor") -> None:
    """Compile the forward of each block, in place, before it is sharded. A part that cannot be compiled raises."""
    torch._dynamo.config.recompile_limit = _MOST_SHAPES
    # It warns of operations in place within what is recomputed; the blocks have none.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    found: list[Any] = list(blocks)
    for block in found:
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False, backend=backend)


def compiled_graphs() -> int:
    """Graphs that this process has compiled so far."""
    return int(counters["stats"]["unique_graphs"])


@contextmanager
def no_recompiles() -> Iterator[None]:
    """Within it, compiling a block that has been compiled before raises torch's RecompileError, with the reason."""
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
