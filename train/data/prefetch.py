"""The keeper of a node's cache: one thread that fetches what a run reads next, and so decides what leaves the cache.

Readers know nothing of what comes next: they read a shard from the cache, or else a range of the shard in its store.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue

from lmms.configs.contract.manifest import Dataset
from lmms.train.data.cache import fetch, is_missing, need_of
from lmms.train.data.upcoming import Upcoming

_END_S = 5.0
"""Seconds to wait for the thread to end; a store that does not answer delays the thread, but never the process."""


@contextmanager
def cache_keeper(datasets: Sequence[Dataset]) -> Iterator[Callable[[Upcoming], None]]:
    """Call the yielded function with the shards that are needed next: a thread fetches those of data sets with a cache.

    For one process of a node. The same list given again is no new work. Nobody waits for a shard. A DatasetError that
    stops the thread is raised at the next call.
    """
    news = SimpleQueue[Upcoming]()
    closed = threading.Event()
    faults: list[Exception] = []
    given: list[Upcoming] = [()]

    def want(upcoming: Upcoming) -> None:
        if faults:
            raise faults[0]
        if upcoming is not given[0]:
            given[0] = upcoming
            news.put(upcoming)

    thread = threading.Thread(target=_run, args=(datasets, news, closed, faults), name="cache-keeper", daemon=True)
    thread.start()
    try:
        yield want
    finally:
        closed.set()
        news.put(())
        thread.join(_END_S)


def _run(
    datasets: Sequence[Dataset], news: "SimpleQueue[Upcoming]", closed: threading.Event, faults: list[Exception]
) -> None:
    try:
        while not closed.is_set():
            upcoming = news.get()
            while not news.empty():
                upcoming = news.get()
            _fetch(datasets, upcoming, lambda: not closed.is_set(), lambda: not news.empty())
    except Exception as error:  # noqa: BLE001  (the trainer raises it)
        faults.append(error)


def _fetch(
    datasets: Sequence[Dataset], upcoming: Upcoming, go_on: Callable[[], bool], is_old: Callable[[], bool]
) -> None:
    """Fetch these shards until there is no room, or a newer list comes: shards that are needed later than a shard
    without room have no room either."""
    need = need_of(datasets, upcoming)
    for i, (number, shard) in enumerate(upcoming):
        if is_old():
            return
        if is_missing(datasets[number], shard):
            place = replace(need, near=need.far[:i], far=need.far[i + 1 :])
            if not fetch(datasets[number], shard, place, go_on):
                return
