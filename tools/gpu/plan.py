"""What is to be trained, found in a folder of packs:

MODEL/config.json    a model's config, without weights
MODEL-SEQ_LEN/       shards that lmms prep made for it, of one length or more
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One model, trained from random weights on each of its shard folders."""

    model: str
    """Folder of its config.json; the folder's name stands in the report."""
    shards: list[str]
    """Shortest packs first."""
    precision: Literal["bf16", "fp32"]
    thin: bool
    """Train a few narrow layers of the model instead of the whole."""
    lr: float
    workers: int
    """Loader processes."""


def find_runs(folder: Path, *, cuda: bool, thin: bool) -> list[Run]:
    """The runs for the models in a folder: in bf16, and in fp32 too where there is no GPU."""
    precisions: tuple[Literal["bf16", "fp32"], ...] = ("bf16",) if cuda else ("fp32", "bf16")
    return [
        Run(
            model=str(config.parent),
            shards=[str(path) for path in _shards(config.parent)],
            precision=precision,
            thin=thin,
            lr=1e-4 if cuda else 1e-3,
            workers=8 if cuda else int(precision == "bf16"),  # so that both ways to load are run
        )
        for config in sorted(folder.glob("*/config.json"))
        if _shards(config.parent)
        for precision in precisions
    ]


def _shards(model: Path) -> list[Path]:
    manifests = model.parent.glob(f"{model.name}-*/manifest.json")
    return sorted((path.parent for path in manifests), key=lambda path: int(path.name.rpartition("-")[2]))
