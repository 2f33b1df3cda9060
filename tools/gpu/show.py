"""The report as tables on a terminal."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tools.gpu.traces import CLASSES


def show(report: Mapping[str, Any], screen: Console) -> None:
    """Print what main.measure found."""
    facts = report["facts"]
    if facts:
        libraries = f"torch {facts['torch']}, transformers {facts['transformers']}, Python {facts['python']}"
        screen.print(f"[bold]{facts['device']}[/] with {libraries}")
    tables = [
        _ceilings(_of_kind(report, "ceilings")),
        _attention(_of_kind(report, "attention")),
        _losses(_of_kind(report, "loss")),
        _trainings(report["trainings"]),
        _classes(report["trainings"]),
        _recipes(report["recipes"]),
        _goals(report["goals"]),
        _missing(report["pieces"]),
    ]
    for table in tables:
        if table.row_count:
            screen.print(table, "")
    for one in report["trainings"]:
        for fault in one["faults"] or ():
            screen.print(f"{_name(one)}: {fault}", style="red", markup=False)
    if facts and facts.get("peak_flops") is None:
        screen.print(
            f"no MFU: the data sheet's peak of {facts['device']!r} is not in lmms.train.model.flops", markup=False
        )
    for name in report["faults"]:
        screen.print(f"failed: {name}", style="red", markup=False)
    verdict = "[bold green]passed[/]" if report["passed"] else "[bold red]failed[/]"
    screen.print(f"{report['stopped'] or verdict} in {report['seconds']:.0f} s")


def _of_kind(report: Mapping[str, Any], kind: str) -> list[Any]:
    return [piece["result"] for piece in report["pieces"] if piece["kind"] == kind and piece["result"] is not None]


def _ceilings(found: Iterable[Mapping[str, Any]]) -> Table:
    table = _table("what this card can do at most", ["what", "rate"])
    for one in found:
        table.add_row("a large bf16 product", f"{one['matmul_flops'] / 1e12:.4g} TFLOP/s")
        table.add_row("the same for seconds", f"{one['sustained_flops'] / 1e12:.4g} TFLOP/s")
        table.add_row("copy on the device, read + write", f"{one['copy'] / 1e9:.4g} GB/s")
        table.add_row("copy to the device, pinned", f"{one['to_device'] / 1e9:.4g} GB/s")
    return table


def _attention(found: Iterable[Iterable[Mapping[str, Any]]]) -> Table:
    table = _table("attention", ["kernel", "model", "layer", "forward ms", "backward ms", "TFLOP/s", "worst", ""])
    for kernel in (one for several in found for one in several):
        speeds = {speed["layer"]: speed for speed in kernel["speeds"]}
        for check in kernel["checks"]:
            speed = speeds.get(check["name"])
            times = [f"{1e3 * speed[part]:.3g}" for part in ("forward", "backward")] if speed else ["", ""]
            rate = f"{speed['flops'] / 1e12:.3g}" if speed else ""
            place = f"{kernel['model']} {kernel['packs']}"
            table.add_row(kernel["backend"], place, check["name"], *times, rate, _worst(check), _verdict(check))
    return table


def _losses(found: Iterable[Mapping[str, Any]]) -> Table:
    table = _table("loss, forward and backward", ["loss", "rows", "ms", "GB", "worst", ""])
    for one in found:
        for speed in one["speeds"] or ({"rows": 0},):
            ms = f"{1e3 * speed['seconds']:.3g}" if one["speeds"] else ""
            gigabytes = _gigabytes(speed.get("memory"))
            rows = f"{speed['rows']:,}" if one["speeds"] else ""
            table.add_row(one["name"], rows, ms, gigabytes, _worst(one["check"]), _verdict(one))
    return table


def _trainings(found: Iterable[Mapping[str, Any]]) -> Table:
    columns = ["training", "tokens/s", "strict MFU", "of product", "step s", "x floor", "x packed", "GB", "expected"]
    table = _table("training steps", [*columns, "wait", "recompiles", "syncs", ""])
    for one in found:
        table.add_row(
            _name(one),
            f"{one['tokens_per_s']:,.0f}",
            _percent(one["mfu"]),
            _percent(one["share of the measured product"]),
            f"{one['seconds']:.3f}",
            _times(one["times its floor"]),
            _times(one["times the packed recipe"]),
            _gigabytes(one["peak_memory"]),
            _gigabytes(one["predicted_memory"]),
            _percent(one["data_wait"]),
            str(one["recompiles"]),
            "" if one["waits"] is None else str(one["waits"]),
            _verdict(one),
        )
    return table


def _classes(found: Iterable[Mapping[str, Any]]) -> Table:
    table = _table("ms of a step by class of kernel: measured / floor", ["training", *CLASSES, "idle"])
    for one in found:
        if one["measured"] is None:
            if one["unmarked"]:
                table.add_row(_name(one), one["unmarked"])
            continue
        floors = one["floors"] or {}
        cells = [_milliseconds(one["measured"][kind], floors.get(kind)) for kind in CLASSES]
        table.add_row(_name(one), *cells, _percent(one["idle"]))
    return table


def _goals(found: Iterable[Mapping[str, Any]]) -> Table:
    table = _table("goals on one H100, held to the fastest rung", ["goal", "wanted", "found", "rung", "", "missing"])
    colours = {"met": "green", "not met": "red", "incomplete": "yellow"}
    for one in found:
        verdict = f"[{colours[one['verdict']]}]{one['verdict']}[/]"
        figure = "" if one["found"] is None else f"{one['found']:.3f}"
        table.add_row(
            one["goal"], f"{one['wanted']:g}", figure, one["rung"] or "", verdict, escape("; ".join(one["missing"]))
        )
    return table


def _recipes(found: Iterable[Mapping[str, Any]]) -> Table:
    table = _table("the packed recipe: which comparators count", ["comparator", "tokens/s", "", "why"])
    for one in found:
        rate = "" if one["tokens_per_s"] is None else f"{one['tokens_per_s']:,.0f}"
        table.add_row(_name(one), rate, "counts" if one["counted"] else "does not", escape(one["why"]))
    return table


def _missing(pieces: Iterable[Mapping[str, Any]]) -> Table:
    table = _table("not done", ["piece", "", "why"])
    for one in pieces:
        if one["outcome"] != "done":
            table.add_row(one["name"], one["outcome"], escape(one["error"].strip().rpartition("\n")[2][:120]))
    return table


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column not in ("why", "training", "missing", "comparator"))
    return table


def _name(one: Mapping[str, Any]) -> str:
    return f"{one['model']} {one['packs']}, {one['name']}"


def _worst(check: Mapping[str, Any]) -> str:
    return f"{max(check['errors'][name] / allowed for name, allowed in check['tolerances'].items()):.0%} of allowed"


def _milliseconds(measured: float, floor: float | None) -> str:
    return f"{1e3 * measured:.1f}" + ("" if floor is None else f" / {1e3 * floor:.1f}")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _gigabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 1e9:.1f}"


def _verdict(result: Mapping[str, Any]) -> str:
    return "[green]ok[/]" if result["passed"] else "[red]failed[/]"
