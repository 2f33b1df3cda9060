"""The setting `repeat`: how often each record is packed, by a hash of (seed, source, row)."""

from fractions import Fraction

import numpy as np

from lmms.configs.contract.hashing import key64, keyed_hash
from lmms.configs.settings.sources import Choice


def copies(choice: Choice, source: str, first_row: int, rows: int) -> list[int]:
    """How often each of these rows of a source is packed. source: its name."""
    # As the user wrote it: 2.3 in floating point is a little less.
    repeat = Fraction(repr(choice.repeat))
    whole = int(repeat)
    if repeat == whole:
        return [whole] * rows
    limit = int((repeat - whole) * 2**64)
    hashes = keyed_hash(np.arange(first_row, first_row + rows), key64("lmms/repeat", choice.seed, source))
    return [whole + 1 if is_once_more else whole for is_once_more in (hashes < np.uint64(limit)).tolist()]
