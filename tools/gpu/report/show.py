"""The report as tables on a terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tools.gpu.pieces.trace import CLASSES

Json = Mapping[str, Any]
_COLOURS = {"met": "green", "not met": "red", "incomplete": "yellow"}
_WRAPPED = ("why", "training", "missing", "comparator")
"""Columns that may take several lines."""
_STEPS = ("training", "tokens/s", "strict MFU", "of product", "step s", "x floor", "x packed", "GB", "expected")


def show(report: Json, screen: Console) -> None:
    """Print the report of a bench."""
    facts, trainings = report["facts"], report["trainings"]
    if facts:
        libraries = f"torch {facts['torch']}, transformers {facts['transformers']}, Python {facts['python']}"
        screen.print(f"[bold]{facts['device']}[/] with {libraries}")
    for title, columns, rows in (
        ("what this card can do at most", ("what", "rate"), _ceilings(_results(report, "ceilings"))),
        (
            "attention",
            ("kernel", "model", "layer", "forward ms", "backward ms", "TFLOP/s", "worst", ""),
            _attention(kernel for kernels in _results(report, "attention") for kernel in kernels),
        ),
        (
            "loss, forward and backward",
            ("loss", "rows", "ms", "GB", "worst", ""),
            _losses(_results(report, "loss")),
        ),
        ("training steps", (*_STEPS, "wait", "recompiles", "syncs", ""), map(_training, trainings)),
        ("ms of a step by class of kernel: measured / floor", ("training", *CLASSES, "idle"), _classes(trainings)),
        (
            "the packed recipe: which comparators count",
            ("comparator", "tokens/s", "", "why"),
            map(_recipe, report["recipes"]),
        ),
        (
            "goals on one H100, held to the fastest rung",
            ("goal", "wanted", "found", "rung", "", "missing"),
            map(_goal, report["goals"]),
        ),
        (
            "not done",
            ("piece", "", "why"),
            ([name, *map(escape, why.split(": ", 1))] for name, why in report["missing"].items()),
        ),
    ):
        _print_table(screen, title, columns, list(rows))
    for training in trainings:
        for fault in training["faults"]:
            screen.print(f"{_name(training)}: {fault}", style="red", markup=False)
    if facts and facts.get("peak_flops") is None:
        screen.print(f"no MFU: the data sheet's peak of {facts['device']!r} is not known to lmms", markup=False)
    for name in report["faults"]:
        screen.print(f"failed: {name}", style="red", markup=False)
    verdict = "[bold green]passed[/]" if report["passed"] else "[bold red]failed[/]"
    screen.print(f"{report['stopped'] or verdict} in {report['seconds']:.0f} s")


def _print_table(screen: Console, title: str, columns: Iterable[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column not in _WRAPPED)
    for row in rows:
        table.add_row(*row)
    if rows:
        screen.print(table, "")


def _results(report: Json, kind: str) -> list[Any]:
    return [piece["result"] for piece in report["pieces"] if piece["kind"] == kind and piece["result"] is not None]


def _ceilings(results: Iterable[Json]) -> Iterator[Sequence[str]]:
    for ceilings in results:
        yield "a large bf16 product", f"{ceilings['matmul_flops'] / 1e12:.4g} TFLOP/s"
        yield "the same for seconds", f"{ceilings['sustained_flops'] / 1e12:.4g} TFLOP/s"
        yield "copy on the device, read + write", f"{ceilings['copy'] / 1e9:.4g} GB/s"
        yield "copy to the device, pinned", f"{ceilings['to_device'] / 1e9:.4g} GB/s"


def _attention(kernels: Iterable[Json]) -> Iterator[Sequence[str]]:
    for kernel in kernels:
        speeds = {speed["layer"]: speed for speed in kernel["speeds"]}
        for check in kernel["checks"]:
            speed = speeds.get(check["name"])
            times = [f"{1e3 * speed[part]:.3g}" for part in ("forward", "backward")] if speed else ["", ""]
            rate = f"{speed['flops'] / 1e12:.3g}" if speed else ""
            place = f"{kernel['model']} {kernel['packs']}"
            yield kernel["backend"], place, check["name"], *times, rate, _worst(check), _verdict(check)


def _losses(results: Iterable[Json]) -> Iterator[Sequence[str]]:
    for loss in results:
        for speed in loss["speeds"] or (None,):
            times = (
                [f"{speed['rows']:,}", f"{1e3 * speed['seconds']:.3g}", _gigabytes(speed["memory"])] if speed else []
            )
            yield loss["name"], *(times or ["", "", ""]), _worst(loss["check"]), _verdict(loss)


def _training(figures: Json) -> Sequence[str]:
    return (
        _name(figures),
        f"{figures['tokens_per_s']:,.0f}",
        _cell(figures["mfu"], ".1%"),
        _cell(figures["share of the measured product"], ".1%"),
        f"{figures['seconds']:.3f}",
        _cell(figures["times its floor"], ".2f"),
        _cell(figures["times the packed recipe"], ".2f"),
        _gigabytes(figures["peak_memory"]),
        _gigabytes(figures["predicted_memory"]),
        _cell(figures["data_wait"], ".1%"),
        str(figures["recompiles"]),
        _cell(figures["waits"], "d"),
        _verdict(figures),
    )


def _classes(trainings: Iterable[Json]) -> Iterator[Sequence[str]]:
    for figures in trainings:
        if figures["measured"] is not None:
            times = (figures["measured"], figures["floors"] or {})
            pairs = ([f"{1e3 * seconds[kind]:.1f}" for seconds in times if kind in seconds] for kind in CLASSES)
            cells = [" / ".join(pair) for pair in pairs]
            yield _name(figures), *cells, _cell(figures["idle"], ".1%")
        elif figures["unmarked"]:
            yield _name(figures), figures["unmarked"]


def _recipe(rival: Json) -> Sequence[str]:
    rate = _cell(rival["tokens_per_s"], ",.0f")
    return _name(rival), rate, "counts" if rival["counted"] else "does not", escape(rival["why"])


def _goal(goal: Json) -> Sequence[str]:
    verdict = f"[{_COLOURS[goal['verdict']]}]{goal['verdict']}[/]"
    numbers = f"{goal['wanted']:g}", _cell(goal["found"], ".3f")
    return goal["goal"], *numbers, goal["rung"] or "", verdict, escape("; ".join(goal["missing"]))


def _name(training: Json) -> str:
    return f"{training['model']} {training['packs']}, {training['name']}"


def _worst(check: Json) -> str:
    return f"{max(check['errors'][name] / allowed for name, allowed in check['tolerances'].items()):.0%} of allowed"


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _gigabytes(value: int | None) -> str:
    return _cell(value and value / 1e9, ".1f")


def _verdict(result: Json) -> str:
    return "[green]ok[/]" if result["passed"] else "[red]failed[/]"
