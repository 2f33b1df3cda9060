"""What is measured, in the order of its worth: what the time does not suffice for is at the end."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tools.gpu.backends import BACKENDS
from tools.gpu.comparators import COMPARATORS
from tools.gpu.losses import LOSSES
from tools.gpu.processes import Piece
from tools.gpu.rungs import BEST, LADDER, OTHERS, rung_of
from tools.gpu.sizes import Sizes

FIRST, SECOND, LARGE = "Qwen2.5-VL-3B", "Qwen3-VL-2B", "Qwen3-VL-8B"
CHUNKED, PADDED = "packed, varlen, chunked loss", "padded, sdpa"
"""The comparators that need nothing which a bare machine lacks."""
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
    products = partial(_products, folder, sizes)
    attention = partial(_attention, folder, sizes)
    training = partial(_training, folder, sizes)
    comparator = partial(_comparator, folder, sizes)
    yield Piece(name="ceilings", kind="ceilings", settings={"sizes": asdict(sizes)}, seconds=40.0)
    yield products(FIRST, "vision")
    yield attention("varlen")
    yield training(FIRST, "vision", BEST)
    yield comparator(FIRST, CHUNKED)
    yield training(SECOND, "vision", BEST)
    yield products(SECOND, "vision")
    yield training(FIRST, "text", BEST)
    yield products(FIRST, "text")
    yield comparator(SECOND, CHUNKED)
    yield from (attention(backend) for backend in BACKENDS if backend not in ("varlen", "flex"))
    for name in LOSSES:
        settings = {"name": name, "sizes": asdict(sizes)}
        yield Piece(name=f"loss {name}", kind="loss", settings=settings, seconds=40.0)
    ladder = [rung.name for rung in LADDER if rung.name != BEST]
    yield from (training(FIRST, "vision", rung) for rung in ladder)
    yield comparator(FIRST, PADDED)
    yield training(LARGE, "vision", BEST)
    yield from (training(SECOND, "vision", rung) for rung in ladder)
    for name in COMPARATORS:
        if name not in (CHUNKED, PADDED):
            yield from (comparator(model, name) for model in (FIRST, SECOND))
    yield comparator(SECOND, PADDED)
    yield from (training(FIRST, "vision", other.name) for other in OTHERS)
    # Compiles for each shape.
    yield attention("flex")


def _products(folder: Path, sizes: Sizes, model: str, packs: str) -> Piece:
    settings = {"model": model, "packs": packs, "folder": str(folder / model), "sizes": asdict(sizes)}
    return Piece(name=f"products {model} {packs}", kind="products", settings=settings, seconds=30.0)


def _attention(folder: Path, sizes: Sizes, backend: str) -> Piece:
    packs = [(FIRST, "vision"), (SECOND, "vision"), (FIRST, "text"), (LARGE, "vision")]
    settings = {"backend": backend, "packs": packs, "folder": str(folder), "sizes": asdict(sizes)}
    return Piece(name=f"attention {backend}", kind="attention", settings=settings, seconds=60.0)


def _training(folder: Path, sizes: Sizes, model: str, packs: str, rung: str) -> Piece:
    name = f"training {model} {packs} {rung}"
    limit = COMPILED if rung_of(rung).settings["kernels.compile"] else PLAIN
    settings: dict[str, Any] = {"model": model, "packs": packs, "rung": rung, "sizes": asdict(sizes)}
    settings |= {"folder": str(folder / model), "output": str(folder / f"run {name}"), "seconds": 0.5 * limit}
    return Piece(name=name, kind="training", settings=settings, seconds=limit, least=20.0)


def _comparator(folder: Path, sizes: Sizes, model: str, name: str) -> Piece:
    settings: dict[str, Any] = {"name": name, "model": model, "packs": "vision", "folder": str(folder / model)}
    settings |= {"sizes": asdict(sizes), "seconds": 0.5 * PLAIN}
    return Piece(name=f"comparator {model} {name}", kind="comparator", settings=settings, seconds=PLAIN, least=20.0)
