"""Which shards leave a cache for another. What a run needs next is known exactly, so it is never that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Need:
    """What a run will read, by the names of cached shards: for the choice of what may go."""

    hashes: frozenset[str]
    """Of the indexes of its data sets; shards of these that are neither near nor far are not needed soon."""
    near: Sequence[str] = ()
    """Needed before the shard that is to be fetched: they stay."""
    far: Sequence[str] = ()
    """Needed after it, in order: the last of them goes first, when nothing else is left."""


def to_evict(files: Mapping[str, tuple[int, float]], size: int, need: Need) -> list[str] | None:
    """Which of these files, name -> (bytes, time of use), go to free `size` bytes; None if too few may go.

    First shards of the run's own data sets that it does not need soon, then those of others, the longest unused first;
    then those that it needs last.
    """
    near = frozenset(need.near)
    # Two data sets of a run may be the same shards.
    far = [name for name in dict.fromkeys(need.far) if name in files and name not in near]
    not_soon = sorted(
        files.keys() - {*near, *far}, key=lambda name: (name.partition("-")[0] not in need.hashes, files[name][1])
    )
    gone = []
    for name in (*not_soon, *reversed(far)):
        if size <= 0:
            break
        gone.append(name)
        size -= files[name][0]
    return gone if size <= 0 else None
