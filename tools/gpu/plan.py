"""What is to be trained, found in a folder of packs:

MODEL/config.json     the model's config, without weights
MODEL-SEQ_LEN/        shards that lmms prep made for it; one folder or more
"""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("configs", "prep", "train", "cli")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One model, trained anew on each of its shard folders."""

    model: str
    """Folder of its config.json; the name stands in the report."""
    shards: tuple[str, ...]
    """Shortest packs first."""
    precision: Literal["bf16", "fp32"]
    thin: bool
    """Train a few narrow layers of the model instead of the whole."""
    lr: float
    workers: int
    """Loader processes."""


def find_runs(folder: Path, *, cuda: bool, thin: bool) -> list[Run]:
    """A run for each model in the folder; without CUDA one more of the first model, in fp32."""
    models = sorted(path.parent for path in folder.glob("*/config.json"))
    runs = [
        Run(
            model=str(model),
            shards=tuple(str(path) for path in _shards(model)),
            precision="bf16",
            thin=thin,
            lr=1e-4 if cuda and not thin else 1e-3,
            workers=8 if cuda else 1,
        )
        for model in models
    ]
    return runs


def _shards(model: Path) -> list[Path]:
    found = [path for path in model.parent.glob(f"{model.name}-*") if (path / "manifest.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def environment(folder: Path) -> dict[str, str]:
    """Environment of a process that imports lmms and tools of this checkout; `folder` holds links if it has to."""
    paths = [str(ROOT)]
    if importlib.util.find_spec("lmms") is None:
        (folder / "lmms").mkdir()
        for room in ROOMS:
            (folder / "lmms" / room).symlink_to(ROOT / room)
        paths.append(str(folder))
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *([inherited] if inherited else [])])}
