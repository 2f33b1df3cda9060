"""complete.json: the size and the hash of every other file of a checkpoint. Written last, it makes one complete."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import xxhash

from lmms.configs.errors import TrainError

STATE_NAME = "trainer.json"
METADATA_NAME = ".metadata"
COMPLETE_NAME = "complete.json"


def fault_of(checkpoint: Path) -> str | None:
    """Why a folder is not a complete checkpoint, by the sizes of its files; None if it is one."""
    try:
        files = json.loads((checkpoint / COMPLETE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return f"it has no {COMPLETE_NAME}"
    except ValueError as error:
        return f"{COMPLETE_NAME} is damaged: {error}"
    if not isinstance(files, dict) or not all(map(_is_entry, files.values())):
        return f"{COMPLETE_NAME} is damaged: expected the bytes and xxh3 of every file"
    for name in (METADATA_NAME, STATE_NAME):
        if name not in files:
            return f"{COMPLETE_NAME} does not name {name}"
    for name, entry in files.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            found = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
            return f"{name} is {found}, expected {entry['bytes']} bytes"
    return None


def read_complete(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """File name -> its bytes and xxh3, of a complete checkpoint. TrainError for one that is not."""
    if (fault := fault_of(checkpoint)) is not None:
        raise TrainError(f"{checkpoint} is not a complete checkpoint: {fault}")
    files: dict[str, dict[str, Any]] = json.loads((checkpoint / COMPLETE_NAME).read_text(encoding="utf-8"))
    return files


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """File name -> its bytes and xxh3 (64 bits, hexadecimal)."""
    return {name: {"bytes": (folder / name).stat().st_size, "xxh3": _hash(folder / name)} for name in names}


def damaged_files(checkpoint: Path, names: Iterable[str]) -> list[str]:
    """Those of these files whose bytes are not the ones that were written."""
    files = read_complete(checkpoint)
    return [name for name in names if _hash(checkpoint / name) != files[name]["xxh3"]]


def refuse_damaged(checkpoint: Path, names: Sequence[str]) -> None:
    """TrainError that names the first of these files, if any."""
    if names:
        raise TrainError(
            f"{checkpoint / names[0]} is damaged: its hash is not that of {COMPLETE_NAME} ({len(names)} files in all);"
            " delete the checkpoint and go on from an earlier one"
        )


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("xxh3"), str)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()
