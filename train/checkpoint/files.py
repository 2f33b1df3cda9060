"""complete.json: size and hash of every other file of a checkpoint, which is complete when this file is written."""

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
CONFIG_NAME = "config.yaml"
"""File in a run's output folder: its resolved config."""


def fault_of(checkpoint: Path) -> str | None:
    """Why a folder is not a complete checkpoint, by the sizes of its files; None if it is complete."""
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
            actual = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
            return f"{name} is {actual}, expected {entry['bytes']} bytes"
    return None


def check_export(folder: Path, out: Path) -> None:
    """TrainError where `out` exists, or `folder` is neither a complete checkpoint nor the output folder of a run."""
    if out.exists():
        raise TrainError(f"{out} exists; remove it or name another folder")
    if not (folder / CONFIG_NAME).is_file():
        refuse_incomplete(folder)


def refuse_incomplete(checkpoint: Path) -> None:
    """TrainError for a folder that is not a complete checkpoint, with the names of complete checkpoints next to it."""
    if (fault := fault_of(checkpoint)) is None:
        return
    state = f"is not a complete checkpoint: {fault}" if checkpoint.is_dir() else "is not there"
    names = sorted(path.name for path in checkpoint.parent.glob("step-*") if fault_of(path) is None)
    there = f"; {checkpoint.parent} has {_few(names)}" if names else f"; {checkpoint.parent} has no complete checkpoint"
    raise TrainError(f"{checkpoint} {state}{there}")


def _few(names: Sequence[str]) -> str:
    """Names; where they are many, those in the middle are left out."""
    return ", ".join(names if len(names) <= 6 else [*names[:3], f"... ({len(names)} in all)", *names[-2:]])


def read_complete(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """File name -> its bytes and xxh3, of a complete checkpoint. TrainError for an incomplete checkpoint."""
    if (fault := fault_of(checkpoint)) is not None:
        raise TrainError(f"{checkpoint} is not a complete checkpoint: {fault}")
    files: dict[str, dict[str, Any]] = json.loads((checkpoint / COMPLETE_NAME).read_text(encoding="utf-8"))
    return files


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """File name -> its bytes and xxh3 (64 bits, hexadecimal)."""
    return {name: {"bytes": (folder / name).stat().st_size, "xxh3": _hash(folder / name)} for name in names}


def damaged_files(checkpoint: Path, names: Iterable[str]) -> list[str]:
    """The files among these whose hash is not that of complete.json."""
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


def named_checkpoint(setting: str) -> Path:
    """The checkpoint that a setting `resume` names. TrainError for a folder that is no complete checkpoint."""
    checkpoint = Path(setting).expanduser()
    if (fault := fault_of(checkpoint)) is not None:
        raise TrainError(
            f"resume is {setting!r}: {checkpoint} is not a complete checkpoint ({fault}); expected auto, never or the"
            " folder of a checkpoint"
        )
    return checkpoint
