"""What is measured, in the order of its worth: what the time does not suffice for is at the end."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.gpu.backends import BACKENDS
from tools.gpu.comparators import COMPARATORS
from tools.gpu.losses import LOSSES
from tools.gpu.processes import Piece
from tools.gpu.rungs import BEST, LADDER, OTHERS
from tools.gpu.sizes import Sizes

FIRST, SECOND, LARGE = "Qwen2.5-VL-3B", "Qwen3-VL-2B", "Qwen3-VL-8B"
PLAIN, COMPILED = 60.0, 150.0
"""Seconds for a training: blocks are compiled in some."""


def pack_pieces(folder: Path, sizes: Sizes) -> Iterator[Piece]:
    """The files of packs, which all that follows needs."""
    for model in (FIRST, SECOND, LARGE):
        settings = {"model": model, "folder": str(folder / model), "sizes": asdict(sizes)}
        yield Piece(name=f"packs {model}", kind="packs", settings=settings, seconds=90.0)


def memory_pieces(folder: Path, sizes: Sizes) -> Iterator[Piece]:
    """What `lmms train --dry-run` expects of each rung. They need no GPU, and run beside the others."""
    rungs = [rung.name for rung in LADDER]
    for model, packs, names in (
        (FIRST, "vision", rungs),
        (SECOND, "vision", rungs),
        (FIRST, "text", [BEST]),
        (LARGE, "vision", [BEST]),
    ):
        settings: dict[str, Any] = {"model": model, "packs": packs, "rungs": names, "folder": str(folder / model)}
        settings["sizes"] = asdict(sizes)
        yield Piece(name=f"memory {model} {packs}", kind="memory", settings=settings, seconds=200.0)


def pieces(folder: Path, sizes: Sizes) -> Iterator[Piece]:
    """All others."""
    made = _Maker(folder, sizes)
    yield Piece(name="ceilings", kind="ceilings", settings={"sizes": asdict(sizes)}, seconds=40.0)
    yield made.products(FIRST, "vision")
    first = "varlen"
    yield made.attention(first)
    goals = ((FIRST, "vision"), (SECOND, "vision"), (FIRST, "text"))
    yield made.training(*goals[0], BEST)
    yield made.comparator(FIRST, "packed, varlen, chunked loss")
    yield made.training(*goals[1], BEST)
    yield made.products(SECOND, "vision")
    yield made.training(*goals[2], BEST)
    yield made.products(FIRST, "text")
    yield made.comparator(SECOND, "packed, varlen, chunked loss")
    for backend in BACKENDS:
        if backend not in (first, "flex"):
            yield made.attention(backend)
    for name in LOSSES:
        settings = {"name": name, "sizes": asdict(sizes)}
        yield Piece(name=f"loss {name}", kind="loss", settings=settings, seconds=40.0)
    ladder = [rung.name for rung in LADDER if rung.name != BEST]
    for rung in ladder:
        yield made.training(FIRST, "vision", rung)
    yield made.comparator(FIRST, "padded, sdpa")
    yield made.training(LARGE, "vision", BEST)
    for rung in ladder:
        yield made.training(SECOND, "vision", rung)
    for name in COMPARATORS:
        if name not in ("packed, varlen, chunked loss", "padded, sdpa"):
            yield made.comparator(FIRST, name)
            yield made.comparator(SECOND, name)
    yield made.comparator(SECOND, "padded, sdpa")
    for other in OTHERS:
        yield made.training(FIRST, "vision", other.name)
    yield made.attention("flex")


class _Maker:
    """Pieces of these sizes on the packs in a folder."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self._folder = folder
        self._sizes = sizes

    def products(self, model: str, packs: str) -> Piece:
        return self._piece("products", f"products {model} {packs}", 30.0, model=model, packs=packs, folder=model)

    def attention(self, backend: str) -> Piece:
        packs = [(FIRST, "vision"), (SECOND, "vision"), (FIRST, "text"), (LARGE, "vision")]
        settings = {"backend": backend, "packs": packs, "folder": str(self._folder), "sizes": asdict(self._sizes)}
        return Piece(name=f"attention {backend}", kind="attention", settings=settings, seconds=60.0)

    def training(self, model: str, packs: str, rung: str) -> Piece:
        name = f"training {model} {packs} {rung}"
        compiles = not any(part in rung for part in ("eager", "+ attention", "liger"))
        seconds = COMPILED if compiles else PLAIN
        output = str(self._folder / f"run {name}")
        return self._piece(
            *("training", name, seconds),
            model=model,
            packs=packs,
            rung=rung,
            folder=model,
            output=output,
            seconds=seconds / 2,
        )

    def comparator(self, model: str, name: str) -> Piece:
        settings = {"name": name, "model": model, "packs": "vision", "folder": model, "seconds": PLAIN / 2}
        return self._piece("comparator", f"comparator {model} {name}", PLAIN, **settings)

    def _piece(self, kind: str, label: str, limit: float, **settings: Any) -> Piece:
        settings |= {"folder": str(self._folder / settings["folder"]), "sizes": asdict(self._sizes)}
        return Piece(name=label, kind=kind, settings=settings, seconds=limit)
