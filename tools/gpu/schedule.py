"""The pieces in the order of their value: if the time is too short, the last pieces are left out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.gpu.pieces.attention import KERNELS, measure_attention
from tools.gpu.pieces.ceilings import measure_ceilings, measure_products
from tools.gpu.pieces.ladder import CANDIDATES, LEAST, NAMES, OTHERS, rung_of
from tools.gpu.pieces.losses import CHUNKED, LOSSES, WHOLE, measure_loss
from tools.gpu.pieces.models import FIRST, LARGE, SECOND, Sizes
from tools.gpu.pieces.packs import packs_piece
from tools.gpu.pieces.training import measure_training, predict_memory
from tools.gpu.processes import Piece
from tools.gpu.rivals.comparator import COMPARATORS, PADDED, RECIPE, STAND_IN, measure_comparator

PLAIN, COMPILED = 60.0, 150.0
"""Seconds for a training without and with compiled blocks."""
FACTS_SECONDS, PACKS_SECONDS = 30.0, 60.0
BUDGET = 460.0
"""Seconds from the start of the command, imports included, after which no piece runs: a process with much GPU memory
takes time to end, and the report is still to be written."""


def allowed(piece: Piece, left: float) -> float:
    """Seconds that a piece gets of the time left; 0 if too few are left to begin."""
    return min(piece.seconds, left) if left >= piece.least else 0.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """The pieces of these sizes, with their files in a folder."""

    folder: Path
    sizes: Sizes

    def packs(self, chosen: Iterable[Piece]) -> Iterator[Piece]:
        """The files of packs that these pieces need."""
        used = {model for piece in chosen for model in _models(piece)}
        for model in (FIRST, SECOND, LARGE):
            if model in used:
                settings = {"model": model, "folder": str(self.folder / model), "sizes": self.sizes}
                yield Piece(name=f"packs {model}", measure=packs_piece, settings=settings, seconds=PACKS_SECONDS)

    def memory(self, chosen: Iterable[Piece]) -> Iterator[Piece]:
        """Pieces for the dry run's memory of these rungs. They need no GPU, and run next to the other pieces."""
        rungs = dict[tuple[str, str], list[str]]()
        for piece in chosen:
            if piece.kind == "training" and piece.ours:
                rungs.setdefault(place(piece), []).append(piece.settings["rung"])
        for (model, packs), names in rungs.items():
            settings = {**self._files(model, packs), "rungs": names}
            name = f"memory {model} {packs}"
            yield Piece(name=name, measure=predict_memory, settings=settings, seconds=BUDGET)

    def pieces(self) -> Iterator[Piece]:
        """All other pieces."""
        yield Piece(name="ceilings", measure=measure_ceilings, settings={"sizes": self.sizes}, seconds=40.0)
        yield self._products(FIRST, "vision")
        yield self._attention("varlen")
        yield self._training(FIRST, "vision", LEAST)
        yield from (self._comparator(FIRST, name) for name in RECIPE)
        yield self._training(SECOND, "vision", LEAST)
        yield self._training(FIRST, "text", LEAST)
        yield from (self._comparator(SECOND, name) for name in RECIPE)
        yield from (self._attention(kernel) for kernel in KERNELS if kernel != "varlen")
        yield from (self._training(FIRST, "vision", rung) for rung in CANDIDATES[1:])
        yield self._comparator(FIRST, STAND_IN)
        yield from (self._training(SECOND, "vision", rung) for rung in CANDIDATES[1:])
        yield from (self._training(FIRST, "text", rung) for rung in CANDIDATES[1:])
        yield self._products(SECOND, "vision")
        yield self._products(FIRST, "text")
        yield from (self._loss(name) for name in LOSSES)
        below = [rung for rung in NAMES if rung not in CANDIDATES]
        yield from (self._training(FIRST, "vision", rung) for rung in below)
        yield self._comparator(FIRST, PADDED)
        yield self._training(LARGE, "vision", LEAST)
        yield self._comparator(SECOND, STAND_IN)
        yield from (self._training(SECOND, "vision", rung) for rung in below)
        for name in [name for name in COMPARATORS if name not in (*RECIPE, STAND_IN, PADDED)]:
            yield from (self._comparator(model, name) for model in (FIRST, SECOND))
        yield self._comparator(SECOND, PADDED)
        yield from (self._training(FIRST, "vision", other.name) for other in OTHERS)

    def _files(self, model: str, packs: str) -> dict[str, object]:
        return {"model": model, "packs": packs, "folder": str(self.folder / model), "sizes": self.sizes}

    def _products(self, model: str, packs: str) -> Piece:
        settings = self._files(model, packs)
        return Piece(name=f"products {model} {packs}", measure=measure_products, settings=settings, seconds=30.0)

    def _attention(self, kernel: str) -> Piece:
        packs = [(FIRST, "vision"), (SECOND, "vision"), (FIRST, "text"), (LARGE, "vision")]
        settings = {"backend": kernel, "packs": packs, "folder": str(self.folder), "sizes": self.sizes}
        ours, name = kernel in ("varlen", "sdpa"), f"attention {kernel}"
        return Piece(name=name, measure=measure_attention, settings=settings, seconds=60.0, ours=ours)

    def _loss(self, name: str) -> Piece:
        settings = {"name": name, "sizes": self.sizes}
        ours = name in (*CHUNKED, *WHOLE)
        return Piece(name=f"loss {name}", measure=measure_loss, settings=settings, seconds=40.0, ours=ours)

    def _training(self, model: str, packs: str, rung: str) -> Piece:
        name = f"training {model} {packs} {rung}"
        limit = COMPILED if rung_of(rung).settings["kernels.compile"] else PLAIN
        settings = {**self._files(model, packs), "rung": rung, "seconds": 0.5 * limit}
        settings["output"] = str(self.folder / f"run {name}")
        ours = rung in NAMES
        return Piece(name=name, measure=measure_training, settings=settings, seconds=limit, least=20.0, ours=ours)

    def _comparator(self, model: str, name: str) -> Piece:
        settings = {**self._files(model, "vision"), "name": name, "seconds": 0.5 * PLAIN}
        name = f"comparator {model} {name}"
        return Piece(name=name, measure=measure_comparator, settings=settings, seconds=PLAIN, least=20.0, ours=False)


def place(piece: Piece) -> tuple[str, str]:
    """Model and pack file of a training, a comparator or a prediction."""
    return piece.settings["model"], piece.settings["packs"]


def _models(piece: Piece) -> Sequence[str]:
    if piece.kind == "attention":
        return [model for model, _ in piece.settings["packs"]]
    return [piece.settings["model"]] if "model" in piece.settings else []
