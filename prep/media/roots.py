"""Media roots: the folders that pictures may be read from, and the file that a path means under them.

Roots are tried in order. Links and `..` are followed to wherever they lead inside any of the roots, and never out of
them: a hub cache's `snapshots/REV/a.jpg -> ../../blobs/HASH` is read if the folder of blobs is a root too.
"""

import os
import stat
import unicodedata
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path

from lmms.configs.errors import SourceError
from lmms.configs.files import at_home
from lmms.prep.media.encoded import shown
from lmms.prep.reject import Reject

MediaRoot = tuple[str, ...] | str | None
"""The setting `media_root`; None: the record file's folder."""


def media_roots(setting: MediaRoot, folder: Path) -> tuple[Path, ...]:
    """The roots that the setting `media_root` names, else the record file's folder. SourceError for a missing root."""
    given = [setting] if isinstance(setting, str) else setting or [str(folder)]
    names = list(map(at_home, given))
    for name in names:
        if not Path(name).is_dir():
            state = "is not a folder" if Path(name).exists() else "does not exist"
            raise SourceError(f"media_root {name} {state}; expected the folder that the paths of pictures begin in")
    return tuple(map(Path, names))


def files_named(
    names: Sequence[str], value: str, roots: Sequence[Path], folders: MutableMapping[str, str]
) -> Iterator[Path]:
    """The places under the roots, behind links and `..`, where a file of one of these names may be, the best first.

    names: readings of `value`, which the record has. folders: folder -> where its links lead; what is looked up is put
    in. Raises Reject behind the last place: nothing was there, or the name leads out of every root.
    """
    real_roots = [_real_folder(str(root), folders) for root in roots]
    insides = tuple(os.path.join(root, "") for root in real_roots)  # noqa: PTH118
    outside = None
    for name in names:
        for root in real_roots:
            path = real_path(os.path.join(root, name), folders)  # noqa: PTH118
            if path in real_roots or path.startswith(insides):
                yield Path(path)
            else:
                outside = outside or (name, Path(path))
    if outside:
        raise _leads_out(*outside, value, roots)
    raise Reject("missing_file", f"{shown(value)} does not exist under {_listed(roots)}{_hint(value)}")


def real_path(path: str, folders: MutableMapping[str, str]) -> str:
    """os.path.realpath(path), with one look at the disk for a file in a known folder. folders: as in files_named."""
    folder, name = os.path.split(path)
    if not folder or name in ("", ".", ".."):
        return os.path.realpath(path)
    place = os.path.join(_real_folder(folder, folders), name)  # noqa: PTH118
    try:
        is_link = stat.S_ISLNK(os.lstat(place).st_mode)
    except OSError:
        is_link = False
    return os.path.realpath(place) if is_link else place


def _real_folder(folder: str, folders: MutableMapping[str, str]) -> str:
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return folders[folder]


def readings(name: str) -> list[str]:
    """A name as written, then in both normal forms of Unicode: macOS writes accents apart, others write them joined."""
    return list(dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]))


def _leads_out(name: str, path: Path, value: str, roots: Sequence[Path]) -> Reject:
    reason = "absolute_path" if name.startswith("/") else "path_outside_root"
    what = f"{shown(value)} leads to {_quoted(path)}, out of {_listed(roots)}"
    if not os.path.lexists(path):
        return Reject(reason, f"{what}, and nothing is there")
    folders = ", ".join(map(str, (*roots, path.parent)))
    return Reject(
        reason, f"{what}; to use it, name its folder as a further root: --media-root '[{_printable(folders)}]'"
    )


def _hint(value: str) -> str:
    if value.startswith("~"):
        return "; a ~ is no folder here, write the path in full"
    if "\\" in value:
        return "; folders are parted by / here, not by a backslash"
    return ""


def _listed(roots: Sequence[Path]) -> str:
    return f"the media root{'s' if len(roots) > 1 else ''} {', '.join(map(str, roots))}"


def _quoted(path: Path) -> str:
    return _printable(str(path))[-200:]


def _printable(text: str) -> str:
    """Text on one line, without letters that move a cursor."""
    return text if text.isprintable() else repr(text)[1:-1]
