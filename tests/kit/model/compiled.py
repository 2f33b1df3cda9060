"""What a test asks of the compiler."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch._dynamo
from torch._dynamo.utils import counters


@contextmanager
def no_recompiles() -> Iterator[None]:
    """Within it, compiling a block that has been compiled before raises torch's RecompileError, with the reason."""
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


def compiled_graphs() -> int:
    """Graphs that this process has compiled so far."""
    return int(counters["stats"]["unique_graphs"])
