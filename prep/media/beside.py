"""Pictures that a source behind a URL names by a relative path: read from beside that source, through its store."""

import posixpath
from collections.abc import Sequence

from lmms.configs.errors import DatasetError
from lmms.configs.stores.remote import missing
from lmms.configs.stores.store import Store
from lmms.prep.media.encoded import shown
from lmms.prep.media.network import is_web
from lmms.prep.reject import Reject

_BLOCK = 8 * 2**20


def read_beside(store: Store, names: Sequence[str], value: str, max_bytes: int, allowed: bool) -> bytes:
    """The bytes of the first file of these names in the store. Raises Reject.

    names: readings of `value`, which the record has. allowed: whether pictures may come over http.
    """
    if is_web(store.where) and not allowed:
        raise Reject("remote_url", f"{shown(value)} is on the network, beside {store.where}; set allow_network")
    for name in names:
        path = posixpath.normpath(name)
        if path.startswith(("/", "../")) or path == "..":
            raise Reject("path_outside_root", f"{shown(value)} leads out of {store.where}, where its source is")
        try:
            return _content(store, path, value, max_bytes)
        except DatasetError as error:
            if str(error) != str(missing(f"{store.where}/{path}")):
                text = str(error).partition(" (data.retry_s)")[0]  # what follows is about runs
                raise Reject("fetch_failed", text) from error
    raise Reject("missing_file", f"{shown(value)} does not exist in {store.where}, where its source is")


def _content(store: Store, path: str, value: str, max_bytes: int) -> bytes:
    blocks: list[bytes] = []
    while not blocks or len(blocks[-1]) == _BLOCK:
        blocks.append(store.read_range(path, len(blocks) * _BLOCK, _BLOCK))
        if sum(map(len, blocks)) > max_bytes:
            raise Reject("file_too_large", f"{shown(value)} has more than {max_bytes} bytes; at most so many are read")
    return b"".join(blocks)
