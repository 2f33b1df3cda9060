"""One self-contained HTML page of runs: style, script and numbers are in the page, which needs no network."""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from lmms.cli.inspect.charts import Chart, all_charts, has_curve, shown_of_a_run
from lmms.cli.inspect.run_words import parting_sentences, summary_rows
from lmms.train.watch.curves import breaks, bucketed, curve
from lmms.train.watch.history import Column, History, elapsed, total_tokens
from lmms.train.watch.summary import Parting, Summary

_POINTS = 1500
"""Most points of a curve: about the columns of a wide screen."""


def page(runs: Sequence[History], sums: Sequence[Summary], partings: Sequence[Parting]) -> str:
    """The page as HTML text. sums, partings: the results of summarize and parting for these runs."""
    folder = files("lmms.cli.inspect.page")
    names = ", ".join(run.folder for run in runs)
    sentences = [sentence for parting in partings for sentence in parting_sentences(runs[0].folder, parting)]
    return (
        (folder / "page.html")
        .read_text(encoding="utf-8")
        .format(
            title=escape(f"lmms: {names}"),
            heading=escape(names),
            style=(folder / "style.css").read_text(encoding="utf-8"),
            script=(folder / "script.js").read_text(encoding="utf-8"),
            summary=_tiles(sums[0]) if len(sums) == 1 else _table(sums),
            partings=f'<div class="partings">{"".join(f"<p>{escape(s)}</p>" for s in sentences)}</div>'
            if sentences
            else "",
            # In a script no text may look like a tag.
            data=json.dumps(_data(runs), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        )
    )


def _data(runs: Sequence[History]) -> dict[str, Any]:
    """The data for the script of the page, which describes their form at its start."""
    grids = [_Grids(run) for run in runs]
    charts = [
        {"title": chart.title, "unit": chart.unit, "series": list(_series(chart, runs, grids))}
        for chart in all_charts(runs)
    ]
    return {
        "runs": [
            {
                "name": run.folder,
                "grids": run_grids.grids,
                "resumed": [int(step) for step in np.unique(run.column("resumed_from")) if step > 0],
                "alarms": [list(alarm) for alarm in run.alarms],
                "skipped": run_grids.places(np.flatnonzero(run.skipped)),
            }
            for run, run_grids in zip(runs, grids, strict=True)
        ],
        "charts": charts,
    }


class _Grids:
    """The places of a run's points along each x axis. Curves with points at the same steps share the places."""

    def __init__(self, run: History) -> None:
        self._axes = {"step": run.steps.astype(np.float64), "tokens": total_tokens(run), "hours": elapsed(run)}
        self._numbers: dict[bytes, int] = {}
        self.grids: list[dict[str, list[float]]] = []

    def number(self, lines: npt.NDArray[np.int64]) -> int:
        """The number of the grid of points at these lines."""
        key = lines.tobytes()
        if key not in self._numbers:
            self._numbers[key] = len(self.grids)
            self.grids.append(self.places(lines))
        return self._numbers[key]

    def places(self, lines: npt.NDArray[np.int64]) -> dict[str, list[float]]:
        """Places of these lines along each axis."""
        return {name: _rounded(values[lines], 7) for name, values in self._axes.items()}


def _series(chart: Chart, runs: Sequence[History], grids: Sequence[_Grids]) -> list[dict[str, Any]]:
    drawn_curves = []
    shown = shown_of_a_run(chart, runs)
    for number, run in enumerate(runs):
        for place, (key, label) in enumerate(entry for entry in chart.series if has_curve(run, entry[0])):
            values = curve(run, key)
            points = bucketed(values, _POINTS)
            drawn: dict[str, Any] = {"run": number, "label": label, "grid": grids[number].number(points.last)}
            drawn["mean"] = _rounded(points.mean)
            if np.isfinite(values).sum() > _POINTS:
                drawn |= {"low": _rounded(points.low), "high": _rounded(points.high)}
            if starts := breaks(run, key, points):
                drawn["breaks"] = starts
            if place >= shown:
                drawn["hidden"] = True
            drawn_curves.append(drawn)
    return drawn_curves


def _rounded(values: Column, digits: int = 6) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values.tolist()]


def _tiles(summary: Summary) -> str:
    """The first fact of each row in large, the rest under it."""
    tiles = []
    for name, value in summary_rows(summary):
        first, _, rest = value.partition(", ")
        tiles.append(f"<div><dt>{escape(name)}</dt><dd>{escape(first)}<small>{escape(rest)}</small></dd></div>")
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _table(sums: Sequence[Summary]) -> str:
    rows = [dict(summary_rows(summary)) for summary in sums]
    heads = "".join(
        f'<th style="color:var(--c{i % 8})">{escape(summary.folder)}</th>' for i, summary in enumerate(sums)
    )
    names = dict.fromkeys(name for row in rows for name in row)
    lines = "".join(_line(name, [row.get(name, "-") for row in rows]) for name in names)
    return f'<div class="table"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'


def _line(name: str, values: Sequence[str]) -> str:
    return f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"
