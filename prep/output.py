"""The place where a shard folder is written: a folder of this machine that gets its name at the end, or a URL.

Behind a URL nothing can be renamed. The shards are written to their places one by one, the tables after them, and the
manifest last: without a manifest nothing is a shard folder. A file building.json says which build writes there. A
second build at one URL takes it over, since nobody can tell a slow build from one that was killed; the first stops.
"""

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from lmms.configs.contract.manifest import FETCHED_NAME, MANIFEST_NAME, TABLE_NAMES, TEMPLATE_NAME
from lmms.configs.contract.mds import INDEX_NAME, read_index
from lmms.configs.errors import BuildError, DatasetError
from lmms.configs.files import new_folder, part_folder
from lmms.configs.stores.remote import RemoteStore, missing
from lmms.configs.stores.store import is_url, open_store
from lmms.configs.words import counted

MARKER_NAME = "building.json"
_REPORT_NAME = "build-report.json"
_OF_BUILDS = {MARKER_NAME, INDEX_NAME, *TABLE_NAMES, FETCHED_NAME, TEMPLATE_NAME, _REPORT_NAME}
_SHARD = re.compile(r"shard\.\d{5,}\.mds")
_FIRST_RETRY_S = 10.0
"""Seconds for which a store is asked again before it has answered once: its name may be wrong."""
_RETRY_S = 120.0
"""The same once it has answered."""


@dataclass(frozen=True, slots=True)
class RemoteBuild:
    """A URL that a build writes to. build: its name, which is also in building.json."""

    store: RemoteStore
    build: str

    def write(self, name: str, data: bytes | Path) -> None:
        """Write a file. BuildError once another build has begun there."""
        self.check_alone()
        self.store.write(name, data)

    def check_alone(self) -> None:
        """BuildError if another build has begun at this URL."""
        try:
            marker = json.loads(self.store.read(MARKER_NAME))
        except DatasetError as error:
            if str(error) != str(missing(f"{self.store.where}/{MARKER_NAME}")):
                raise
            raise BuildError(f"another build has ended at {self.store.where} since this one began") from None
        if marker["build"] != self.build:
            who = f"process {marker['process']} on {marker['host']}"
            raise BuildError(f"another build, {who}, has begun at {self.store.where}; this one stops")


@dataclass(frozen=True, slots=True)
class Output:
    """The place of the files of a shard folder while it is made."""

    folder: Path
    """Folder of this machine, for tables and what is read again."""
    remote: RemoteBuild | None = None
    """The URL that shards are written to; None: they are written in `folder`."""

    def write(self, name: str, data: bytes) -> None:
        """Write a shard file."""
        if self.remote:
            self.remote.write(name, data)
        else:
            (self.folder / name).write_bytes(data)


@contextmanager
def new_output(place: str, folder: Path) -> Iterator[Output]:
    """Yields the Output of what becomes a shard folder at the end of the block; if the block raises, there is none.

    place: a folder or URL. folder: the same folder; for a URL, the folder beside which OUT.lmms-part is made.
    BuildError if a shard folder is there, or files that no build wrote, and while another process writes there.
    """
    if not is_url(place):
        with new_folder(folder, BuildError) as part:
            yield Output(part)
        return
    with part_folder(folder, BuildError) as part:
        remote = _begun(place)
        try:
            yield Output(part, remote)
            _publish(remote, part)
        except BaseException:
            with suppress(BuildError, DatasetError):  # what stays has no manifest, and the next build replaces it
                at_once = RemoteBuild(RemoteStore(remote.store.where, remote.store.url, 0), remote.build)
                at_once.check_alone()
                at_once.store.delete(_left_by_builds(at_once.store))
            raise


def _begun(url: str) -> RemoteBuild:
    """The build at a URL, with its marker; what a build that stopped left there is deleted."""
    store = open_store(url, _FIRST_RETRY_S)
    assert isinstance(store, RemoteStore)
    leftovers = _left_by_builds(store)
    remote = RemoteBuild(RemoteStore(store.where, store.url, _RETRY_S), uuid4().hex)
    marker = {"build": remote.build, "host": socket.gethostname(), "process": os.getpid()}
    remote.store.write(MARKER_NAME, json.dumps(marker).encode())
    remote.store.delete([name for name in leftovers if name != MARKER_NAME])
    return remote


def _left_by_builds(store: RemoteStore) -> list[str]:
    """The files of a build that is not complete. BuildError for a complete shard folder, and for other files."""
    names = _sizes(store)
    if MANIFEST_NAME in names:
        raise BuildError(f"{store.where} exists; remove it or name another URL")
    others = [name for name in names if name not in _OF_BUILDS and not _SHARD.fullmatch(name)]
    if others:
        raise BuildError(
            f"{store.where} holds {counted(len(others), 'file')} that no build wrote, such as {sorted(others)[0]};"
            " expected a URL with no files"
        )
    return list(names)


def _sizes(store: RemoteStore) -> dict[str, int]:
    sizes = store.sizes()
    if sizes is None:
        raise BuildError(f"{store.where} may not be listed; a build has to see what is there: allow that too")
    return dict(sizes)


def _publish(remote: RemoteBuild, folder: Path) -> None:
    """Write the tables, see that every file is there, and write the manifest."""
    files = sorted(file for file in folder.iterdir() if file.name != MANIFEST_NAME)
    for file in files:
        remote.write(file.name, file)
    index = (folder / INDEX_NAME).read_bytes()
    expected = {shard.name: shard.bytes for shard in read_index(index, INDEX_NAME)}
    expected |= {file.name: file.stat().st_size for file in files}
    sizes = _sizes(remote.store)
    remote.check_alone()
    wrong = sorted(name for name, size in expected.items() if sizes.get(name) != size)
    if wrong:
        raise BuildError(
            f"{remote.store.where}/{wrong[0]} has {sizes.get(wrong[0], 'no')} bytes, {expected[wrong[0]]} were written:"
            " somebody else changes the files there; build again to another URL"
        )
    remote.write(MANIFEST_NAME, folder / MANIFEST_NAME)
    with suppress(DatasetError):  # the folder is complete, also with its marker
        remote.store.delete([MARKER_NAME])
