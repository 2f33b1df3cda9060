"""Which files hold records, by the endings of their names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Kind = Literal["jsonl", "json", "csv", "tsv", "tar", "parquet", "arrow", "memory"]

_ENDINGS: Mapping[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tar": "tar",
}
"""Endings after which an ending of COMPRESSED may stand."""
_WHOLE: Mapping[str, Kind] = {".parquet": "parquet", ".arrow": "arrow", ".tgz": "tar"}
COMPRESSED = (".gz", ".zst", ".xz", ".bz2")

EXPECTED = f"{', '.join(_ENDINGS)} (also {', '.join(COMPRESSED)}), {', '.join(_WHOLE)}"
"""The endings of sources, for messages."""

TABLES: tuple[Kind, ...] = ("parquet", "arrow")
"""Kinds that libraries read, in a process of their own."""


def kind_of(path: Path) -> Kind | None:
    """The kind of a file by its name; None for a name with another ending."""
    name = path.name.lower()
    if name.endswith(COMPRESSED):
        return _ENDINGS.get(Path(Path(name).stem).suffix)
    return _ENDINGS.get(Path(name).suffix) or _WHOLE.get(Path(name).suffix)


def ending_of(path: Path) -> str:
    """What to call the ending of a file: `.txt`, `.txt.gz`, or `no ending`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] and suffixes[-1] in COMPRESSED else suffixes[-1:]) or "without ending"
