"""lmms inspect run: the curves of one or more runs, side by side."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmms.cli import ui
from lmms.cli.inspect.run_words import parting_sentences, summary_rows
from lmms.configs.nested import finite

if TYPE_CHECKING:
    from lmms.cli.inspect.charts import Chart
    from lmms.train.watch.history import History
    from lmms.train.watch.summary import Parting, Summary

_COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red")
_ROWS, _LABELS, _WIDE = 7, 9, 100
"""Cells: the height of a curve, the numbers at its left, and the width from which charts stand in two columns."""


def run(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Output folders of `lmms train`.")],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one self-contained page instead, for a browser.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with the sums, nothing else.")] = False,
) -> None:
    """Plot runs and compare them: curves, sums, and where others begin to differ from the first. A run may still train.

    Example: lmms inspect run runs/first runs/second --html runs.html
    """
    from lmms.train.watch.history import read_history
    from lmms.train.watch.summary import parting, summarize

    runs = [read_history(folder) for folder in folders]
    sums = [summarize(run) for run in runs]
    partings = [parting(runs[0], other) for other in runs[1:]]
    if as_json:
        sums_and_partings = {"runs": list(map(asdict, sums)), "partings": list(map(asdict, partings))}
        typer.echo(json.dumps(finite(sums_and_partings), ensure_ascii=False))
    elif html is not None:
        from lmms.cli.inspect.page.write import page

        html.write_text(page(runs, sums, partings), encoding="utf-8")
        typer.echo(f"wrote {html}")
    else:
        show(ui.console(), runs, sums, partings)


def show(out: Console, runs: Sequence["History"], sums: Sequence["Summary"], partings: Sequence["Parting"]) -> None:
    """Charts, tables and partings, as wide as the console. Without colours each run has separate charts."""
    from lmms.cli.inspect.charts import charts_of
    from lmms.cli.inspect.last_values import last_values

    coloured = out.color_system is not None
    for group in [runs] if coloured else [[run] for run in runs]:
        if len(runs) > 1:
            out.print(_names(group, runs))
        columns = 2 if out.width >= _WIDE else 1
        grid = Table.grid(padding=(0, 2), expand=False)
        drawn = [_drawn(chart, group, runs, out.width // columns - 2, coloured) for chart in charts_of(group)]
        for start in range(0, len(drawn), columns):
            grid.add_row(*drawn[start : start + columns])
        out.print(grid)
    out.print(_table(runs, sums))
    styles = [_colour(runs, run) if len(runs) > 1 else "" for run in runs]
    if (table := last_values(runs, styles, out.width)).row_count:
        out.print()
        out.print(table)
    for parting in partings:
        for sentence in parting_sentences(runs[0].folder, parting):
            out.print(Text(sentence), soft_wrap=True)


def _names(group: Sequence["History"], runs: Sequence["History"]) -> Text:
    return Text("   ").join(Text.assemble(("━━ ", _colour(runs, run)), (run.folder, "bold")) for run in group)


def _colour(runs: Sequence["History"], run: "History") -> str:
    return _COLOURS[next(i for i, other in enumerate(runs) if other is run) % len(_COLOURS)]


def _drawn(chart: "Chart", group: Sequence["History"], runs: Sequence["History"], width: int, coloured: bool) -> Text:
    """The first curve of a chart: every step faint, under a smoothed curve; plain text has only the smoothed curve."""
    from lmms.cli.inspect.charts import has_curve, marks, number
    from lmms.cli.inspect.last_values import points
    from lmms.cli.inspect.plot import Curve, frame, plot

    key, label = chart.series[0]
    shown = [run for run in group if has_curve(run, key)]
    faint, bold, lasts = [], [], []
    for run in shown:
        x, y, smooth = points(run, key)
        style = _colour(runs, run)
        faint.append(Curve(x=x, y=y, style=f"dim {style}", band=True))
        bold.append(Curve(x=x, y=smooth, style=f"bold {style}"))
        lasts.append((number(float(y[-1]), chart.unit), style))
    left = min(float(run.steps[0]) for run in shown)
    right = max(float(run.steps[-1]) for run in shown)
    curves = [*faint, *bold] if coloured else bold
    lowest, highest = marks(frame(curves), chart.unit)
    labels = max(_LABELS, len(lowest), len(highest))
    cells = width - labels - 2
    rows = plot(curves, (left, max(right, left + 1)), cells, _ROWS)
    title = chart.title if label in ("all", chart.title, "lr", "wait", "peak") else f"{chart.title}, {label}"
    text = Text.assemble((title, "bold"), "  ")
    text.append(Text("  ").join(Text(*last) for last in lasts)).append("\n")
    for i, row in enumerate(rows):
        mark = {0: highest, _ROWS - 1: lowest}.get(i, "")
        text.append(f"{mark:>{labels}}", "dim").append(" ┤" if mark else " │", "dim").append(row).append("\n")
    if label == chart.title == "loss" and any(run.skipped.any() for run in shown):
        text.append(f"{'skipped':>{labels}} │", "dim")
        text.append(_skipped(shown, runs, left, right, cells)).append("\n")
    ends = f"{int(left):,}", f"{int(right):,}"
    gap = " " * (cells - len(ends[0]) - len(ends[1]))
    return text.append(f"{'':{labels + 2}}{ends[0]}{gap}{ends[1]}\n", "dim")


def _skipped(shown: Sequence["History"], runs: Sequence["History"], left: float, right: float, cells: int) -> Text:
    """A row of crosses under a chart, where steps were skipped."""
    row = [(" ", "")] * cells
    for run in shown:
        for step in run.steps[run.skipped].tolist():
            row[int((step - left) / max(right - left, 1) * (cells - 1))] = ("×", _colour(runs, run))
    return Text.assemble(*row)


def _table(runs: Sequence["History"], sums: Sequence["Summary"]) -> Table:
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="bold")
    table.add_column("")
    for run in runs:
        table.add_column(Text(run.folder, _colour(runs, run) if len(runs) > 1 else ""), overflow="fold")
    rows = [dict(summary_rows(summary)) for summary in sums]
    for name in dict.fromkeys(name for row in rows for name in row):
        table.add_row(Text(name, "dim"), *(Text(row.get(name, "-")) for row in rows))
    return table
