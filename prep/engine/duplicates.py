"""Records that say the same as an earlier record of a build: counted, and left out where the settings say so.

Equal are records of which the samples have equal tokens, targets, weights and pictures, wherever they come from. Each
sample has 16 bytes of the hash of its record: of 100 million records two different ones look equal with a chance below
1e-22.
"""

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.manifest import SKIPPED
from lmms.configs.contract.pack import first_samples
from lmms.prep.engine.ledger import Ledger


def settle_duplicates(ledger: Ledger, drop: bool) -> None:
    """Count the records of each source that equal an earlier record; with `drop` they become skipped records."""
    samples = ledger.all_samples()
    is_first = first_samples(samples["source"], samples["row"])
    is_repeated = repeated(samples[is_first]["content_high"], samples[is_first]["content_low"])
    counts = np.bincount(samples["source"][is_first][is_repeated], minlength=len(ledger.sources)).tolist()
    for source, count in enumerate(counts):
        ledger.duplicates[source] = count
        if drop and count:
            ledger.skipped[source] += count
            ledger.notes[source][SKIPPED + "duplicates"] += count
    if drop:
        record_of = np.cumsum(is_first) - 1
        ledger.samples = [samples[~is_repeated[record_of]]]


def repeated(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """bool [records]: whether an earlier record has the same hash. high, low: uint64 [records], its halves."""
    order = np.lexsort((np.arange(len(high)), low, high))
    is_repeated = np.zeros(len(high), bool)
    is_repeated[order[1:]] = (np.diff(high[order]) == 0) & (np.diff(low[order]) == 0)
    return is_repeated
