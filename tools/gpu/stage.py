"""One stage in its process: python -m tools.gpu.stage NAME SETTINGS RESULTS

SETTINGS is JSON. RESULTS is a file that holds the list of results so far, written anew after each.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def results_of(name: str, settings: dict[str, Any]) -> Iterator[Any]:
    """The results of a stage, dataclasses each. Imports only what that stage needs."""
    match name:
        case "facts":
            from tools.gpu.facts import read_facts

            yield read_facts()
        case "draw":
            from tools.gpu.drawn import draw_packs

            draw_packs(Path(settings["out"]))
        case "attention":
            from tools.gpu.attention import check_attention

            yield from check_attention()
        case "loss":
            from tools.gpu.loss import check_loss

            yield from check_loss()
        case "train":
            from tools.gpu.plan import Run
            from tools.gpu.training import measure

            yield from measure(Run(**settings["run"]), settings["seconds"], settings["matmul_flops"])
        case _:
            raise ValueError(f"no stage is called {name!r}")


def main(name: str, settings: str, file: str) -> None:
    """Run a stage and keep its results."""
    found = []
    for result in results_of(name, json.loads(settings)):
        found.append(dataclasses.asdict(result))
        part = Path(file + ".part")
        part.write_text(json.dumps(found), encoding="utf-8")
        part.rename(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
