"""A chunk whose worker died: its records are made one by one, and one that ends a process twice is rejected by name.

A process that dies costs its chunk a retry in a new process. If that one dies too, its last record is known; if the
next dies with the same record, the record is lost, and the rest of the chunk is made without it. A machine on which all
processes die ends the build: then record after record would be lost, or each process dies with another record.
"""

from dataclasses import replace

from lmms.configs.errors import BuildError
from lmms.prep.reject import Reject
from lmms.prep.rows.chunk import Care, Chunk

PROCESS_DIED = "process_died"
MOST_LOST = 100
"""Records of a build that may be lost by the death of a process."""
IN_A_ROW = 10
"""Lost records without one between them that was made: then the records are not to blame."""
_MOST_STRAYS = 10
"""Deaths of a chunk that are no record's second."""


def after_death(chunk: Chunk, how: str, row: int | None, lost_before: int, source: str) -> Chunk:
    """The chunk to try again. BuildError where records are not to blame.

    how: how the process ended, see how_ended. row: the one that the process had begun, None where nobody knows.
    lost_before: records of the build that were lost so far, in other chunks. source: its name.
    """
    care = chunk.care
    if care is None:
        return replace(chunk, care=Care())
    lost = care.lost
    if row is not None and row == care.suspect:
        lost = {**lost, row: Reject(PROCESS_DIED, f"two processes died with this record; the second {how}")}
    care = Care(lost, row, care.deaths + 1)
    advice = f"the last {how}. Free memory or set fewer workers, and run the same command again: it goes on from here"
    if row is not None and len(lost) >= IN_A_ROW and all(row - i in lost for i in range(IN_A_ROW)):
        rows = f"rows {row - IN_A_ROW + 1} to {row} of {source}"
        raise BuildError(f"worker processes die with one record after another: {rows}, twice each; {advice}")
    if len(lost) + lost_before > MOST_LOST:
        raise BuildError(f"worker processes died with more than {MOST_LOST} records, twice with each; {advice}")
    if care.deaths > 2 * len(lost) + _MOST_STRAYS:
        raise BuildError(f"{care.deaths} worker processes died, at several rows of {source}; {advice}")
    return replace(chunk, care=care)
