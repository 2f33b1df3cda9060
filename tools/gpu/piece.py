"""What each kind of piece does, in its process."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.gpu.attention import measure_attention
from tools.gpu.ceilings import measure_ceilings, measure_products
from tools.gpu.comparators import measure_comparator
from tools.gpu.facts import read_facts
from tools.gpu.loss import measure_loss
from tools.gpu.packs import make_packs
from tools.gpu.predicted import predict
from tools.gpu.sizes import Sizes
from tools.gpu.training import measure_training


def results_of(kind: str, settings: dict[str, Any]) -> Iterator[Any]:
    """The results of a kind of piece, each whole: the last one counts."""
    settings = {**settings}
    if "sizes" in settings:
        settings["sizes"] = Sizes(**settings["sizes"])
    match kind:
        case "facts":
            yield from read_facts()
        case "packs":
            began = time.monotonic()
            make_packs(settings["model"], settings["sizes"], Path(settings["folder"]))
            yield {"seconds": time.monotonic() - began}
        case "memory":
            yield from predict(**settings)
        case "ceilings":
            yield from measure_ceilings(**settings)
        case "products":
            yield from measure_products(**settings)
        case "attention":
            yield from measure_attention(**settings)
        case "loss":
            yield from measure_loss(**settings)
        case "training":
            yield from measure_training(**settings)
        case "comparator":
            yield from measure_comparator(**settings)
        case _:
            raise ValueError(f"no kind of piece is called {kind!r}")


def write_json(path: Path, value: Any) -> None:
    """Write a file that is there whole or not at all. Dataclasses become objects."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1, default=asdict) + "\n", encoding="utf-8")
    part.rename(path)
