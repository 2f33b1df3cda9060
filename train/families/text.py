"""Qwen2.5 and Qwen3: positions count tokens, from 0 in every conversation."""

import numpy as np
import numpy.typing as npt


def positions(cu_seqlens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """int64 [1, T] from cu_seqlens [segments + 1]: each token's place in its own conversation."""
    starts = np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
    return (np.arange(len(starts)) - starts)[np.newaxis]
