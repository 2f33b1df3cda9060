"""The report as tables on a terminal."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show(report: Mapping[str, Any], screen: Console) -> None:
    """Print what main.measure found."""
    facts = report["facts"]
    if facts:
        libraries = f"torch {facts['torch']}, transformers {facts['transformers']}, Python {facts['python']}"
        screen.print(f"[bold]{facts['device']}[/] with {libraries}")
        screen.print(f"a large bf16 product runs at {facts['matmul_flops'] / 1e12:.3g} TFLOP/s")
    checks = _table("bf16 against fp32", ["what", "relative errors", "of allowed", ""])
    for check in report["checks"]:
        worst = max(check["errors"][name] / allowed for name, allowed in check["tolerances"].items())
        checks.add_row(check["name"], _numbers(check["errors"]), f"{worst:.0%}", _verdict(check))
    steps = _table("training steps", ["model", "pack", "type", "tokens/s", "MFU", "GB", "wait", "loss", ""])
    for model in report["models"]:
        steps.add_row(*_step_row(model), _verdict(model))
    for table in (checks, steps):
        if table.row_count:
            screen.print(table, "")
    if any(model.get("mfu", 0) is None for model in report["models"]):
        screen.print(f"no MFU: the data sheet's peak of {facts['device']!r} is not in lmms.train.flops")
    for fault in _faults(report):
        screen.print(fault, style="red", markup=False)
    verdict = "[bold green]passed[/]" if report["passed"] else "[bold red]failed[/]"
    screen.print(f"{verdict} in {report['seconds']:.0f} s")


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column != "relative errors")
    return table


def _step_row(model: Mapping[str, Any]) -> list[str]:
    place = [model["model"], f"{model['seq_len']:,}"]
    if "skipped" in model:
        return [*place, "no memory", "", "", "", "", ""]
    return [
        *place,
        model["precision"] + (" thin" if model["thin"] else ""),
        f"{model['tokens_per_s']:,.0f}",
        "none" if model["mfu"] is None else f"{model['mfu']:.1%}",
        f"{model['peak_memory'] / 1e9:.1f}",
        f"{model['data_wait']:.1%}",
        f"{model['losses'][0]:.2f} → {model['losses'][-1]:.2f}",
    ]


def _faults(report: Mapping[str, Any]) -> list[str]:
    found = [f"{m['model']} at {m['seq_len']}: {fault}" for m in report["models"] for fault in m.get("faults", ())]
    return found + [f"{failure['stage']} failed: {failure['error']}" for failure in report["failures"]]


def _numbers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1e}" for name, value in values.items())


def _verdict(result: Mapping[str, Any]) -> str:
    return "[green]ok[/]" if result["passed"] else "[red]failed[/]"
