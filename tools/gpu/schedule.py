"""What is measured, in the order of its worth: what the time does not suffice for is at the end."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tools.gpu.backends import BACKENDS
from tools.gpu.losses import LOSSES
from tools.gpu.processes import Piece
from tools.gpu.recipes import COMPARATORS, RECIPE
from tools.gpu.rungs import CANDIDATES, LADDER, LEAST, OTHERS, rung_of
from tools.gpu.sizes import Sizes

FIRST, SECOND, LARGE = "Qwen2.5-VL-3B", "Qwen3-VL-2B", "Qwen3-VL-8B"
PADDED = "padded, sdpa"
PLAIN, COMPILED = 60.0, 150.0
"""Seconds for a training: blocks are compiled in some."""
FACTS_SECONDS, PACKS_SECONDS = 30.0, 60.0
LIMIT = 480.0
"""Seconds for the whole command."""
BUDGET = 460.0
"""Seconds from the command's begin, imports included, after which nothing runs any more: a process that holds much of a
GPU's memory is not gone at once, and the report is to be written."""


def allowed(piece: Piece, left: float) -> float:
    """Seconds that a piece gets of those that are left: 0 where it is not worth beginning."""
    return min(piece.seconds, left) if left >= piece.least else 0.0


def latest(pieces: Iterable[Piece], seconds: float) -> Iterator[tuple[Piece, float | None]]:
    """Each with the seconds that are left at least when its turn comes, however long those before it take; None where
    it may not be begun. Before all are the facts, perhaps twice, and the packs, together."""
    left = seconds - 2 * FACTS_SECONDS - PACKS_SECONDS
    for piece in pieces:
        gets = allowed(piece, left)
        yield piece, left if gets else None
        left -= gets


def pack_pieces(folder: Path, sizes: Sizes) -> Iterator[Piece]:
    """The files of packs, which all that follows needs."""
    for model in (FIRST, SECOND, LARGE):
        settings = {"model": model, "folder": str(folder / model), "sizes": asdict(sizes)}
        yield Piece(name=f"packs {model}", kind="packs", settings=settings, seconds=PACKS_SECONDS)


def memory_pieces(folder: Path, sizes: Sizes) -> Iterator[Piece]:
    """What `lmms train --dry-run` expects of each rung. They need no GPU, and run beside the others."""
    rungs = [rung.name for rung in LADDER]
    for model, packs, names in (
        (FIRST, "vision", rungs),
        (SECOND, "vision", rungs),
        (FIRST, "text", CANDIDATES),
        (LARGE, "vision", [LEAST]),
    ):
        settings: dict[str, Any] = {"model": model, "packs": packs, "rungs": names, "folder": str(folder / model)}
        settings["sizes"] = asdict(sizes)
        yield Piece(name=f"memory {model} {packs}", kind="memory", settings=settings, seconds=BUDGET)


def pieces(folder: Path, sizes: Sizes) -> Iterator[Piece]:
    """All others."""
    products = partial(_products, folder, sizes)
    attention = partial(_attention, folder, sizes)
    training = partial(_training, folder, sizes)
    comparator = partial(_comparator, folder, sizes)
    yield Piece(name="ceilings", kind="ceilings", settings={"sizes": asdict(sizes)}, seconds=40.0)
    yield products(FIRST, "vision")
    yield attention("varlen")
    yield training(FIRST, "vision", LEAST)
    # Those with the other patches after them: they may be slow.
    recipe = sorted(RECIPE, key=lambda name: not COMPARATORS[name].linear_patches)
    yield from (comparator(FIRST, name) for name in recipe)
    yield training(SECOND, "vision", LEAST)
    yield training(FIRST, "text", LEAST)
    yield from (comparator(SECOND, name) for name in recipe)
    yield from (attention(backend) for backend in BACKENDS if backend not in ("varlen", "flex"))
    yield from (training(FIRST, "vision", rung) for rung in CANDIDATES[1:])
    stand_in = "packed, varlen, chunked loss, linear patches"
    yield comparator(FIRST, stand_in)
    yield from (training(SECOND, "vision", rung) for rung in CANDIDATES[1:])
    yield from (training(FIRST, "text", rung) for rung in CANDIDATES[1:])
    yield products(SECOND, "vision")
    yield products(FIRST, "text")
    yield from (_loss(sizes, name) for name in LOSSES)
    below = [rung.name for rung in LADDER if rung.name not in CANDIDATES]
    yield from (training(FIRST, "vision", rung) for rung in below)
    yield comparator(FIRST, PADDED)
    yield training(LARGE, "vision", LEAST)
    yield comparator(SECOND, stand_in)
    yield from (training(SECOND, "vision", rung) for rung in below)
    for name in COMPARATORS:
        if name not in (*RECIPE, stand_in, PADDED):
            yield from (comparator(model, name) for model in (FIRST, SECOND))
    yield comparator(SECOND, PADDED)
    yield from (training(FIRST, "vision", other.name) for other in OTHERS)
    # Compiles for each shape.
    yield attention("flex")


def _loss(sizes: Sizes, name: str) -> Piece:
    settings = {"name": name, "sizes": asdict(sizes)}
    ours = name.startswith(("chunked", "whole"))
    return Piece(name=f"loss {name}", kind="loss", settings=settings, seconds=40.0, ours=ours)


def _products(folder: Path, sizes: Sizes, model: str, packs: str) -> Piece:
    settings = {"model": model, "packs": packs, "folder": str(folder / model), "sizes": asdict(sizes)}
    return Piece(name=f"products {model} {packs}", kind="products", settings=settings, seconds=30.0)


def _attention(folder: Path, sizes: Sizes, backend: str) -> Piece:
    packs = [(FIRST, "vision"), (SECOND, "vision"), (FIRST, "text"), (LARGE, "vision")]
    settings = {"backend": backend, "packs": packs, "folder": str(folder), "sizes": asdict(sizes)}
    ours = backend in ("varlen", "sdpa")
    return Piece(name=f"attention {backend}", kind="attention", settings=settings, seconds=60.0, ours=ours)


def _training(folder: Path, sizes: Sizes, model: str, packs: str, rung: str) -> Piece:
    name = f"training {model} {packs} {rung}"
    limit = COMPILED if rung_of(rung).settings["kernels.compile"] else PLAIN
    settings: dict[str, Any] = {"model": model, "packs": packs, "rung": rung, "sizes": asdict(sizes)}
    settings |= {"folder": str(folder / model), "output": str(folder / f"run {name}"), "seconds": 0.5 * limit}
    ours = rung not in [other.name for other in OTHERS]
    return Piece(name=name, kind="training", settings=settings, seconds=limit, least=20.0, ours=ours)


def _comparator(folder: Path, sizes: Sizes, model: str, name: str) -> Piece:
    settings: dict[str, Any] = {"name": name, "model": model, "packs": "vision", "folder": str(folder / model)}
    settings |= {"sizes": asdict(sizes), "seconds": 0.5 * PLAIN}
    name = f"comparator {model} {name}"
    return Piece(name=name, kind="comparator", settings=settings, seconds=PLAIN, least=20.0, ours=False)
