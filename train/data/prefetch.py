"""Shards on their way into the cache while packs of others are read."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue

from lmms.configs.contract.manifest import Dataset
from lmms.train.data.cache import fetch, is_missing, need_of
from lmms.train.data.upcoming import Ahead

_END_S = 5.0
"""For the thread to end; a store that does not answer holds it for longer, but never the process."""


@contextmanager
def look_ahead(datasets: Sequence[Dataset]) -> Iterator[Callable[[Ahead], None]]:
    """Call what is yielded with the shards that are needed next: a thread fetches those of data sets with a cache.

    For one process of a node. A list that is given again is not gone through again. Readers that do not find a shard
    yet read its packs where they are, if their store has ranges, so nothing waits. What stops the thread is raised at
    the next call: a DatasetError.
    """
    news = SimpleQueue[Ahead]()
    closed = threading.Event()
    faults: list[Exception] = []
    given: list[Ahead] = [()]

    def want(ahead: Ahead) -> None:
        if faults:
            raise faults[0]
        if ahead is not given[0]:
            given[0] = ahead
            news.put(ahead)

    thread = threading.Thread(target=_run, args=(datasets, news, closed, faults), name="look-ahead", daemon=True)
    thread.start()
    try:
        yield want
    finally:
        closed.set()
        news.put(())
        thread.join(_END_S)


def _run(
    datasets: Sequence[Dataset], news: "SimpleQueue[Ahead]", closed: threading.Event, faults: list[Exception]
) -> None:
    try:
        while not closed.is_set():
            ahead = news.get()
            while not news.empty():
                ahead = news.get()
            _fetch(datasets, ahead, lambda: not closed.is_set(), lambda: not news.empty())
    except Exception as error:  # noqa: BLE001  (the trainer raises it)
        faults.append(error)


def _fetch(datasets: Sequence[Dataset], ahead: Ahead, go_on: Callable[[], bool], is_old: Callable[[], bool]) -> None:
    """Fetch these shards until there is no room, or a newer list: what is needed later than a shard without room has
    none either."""
    need = need_of(datasets, ahead)
    for i, (number, shard) in enumerate(ahead):
        if is_old():
            return
        if is_missing(datasets[number], shard):
            place = replace(need, near=need.far[:i], far=need.far[i + 1 :])
            if not fetch(datasets[number], shard, place, wait=False, go_on=go_on):
                return
