"""A table of the last smoothed values of the curves that the terminal does not draw."""

from collections.abc import Sequence

import numpy as np
from rich.table import Table
from rich.text import Text

from lmms.cli.inspect.charts import has_curve, norms_and_losses_by_name, number
from lmms.train.watch.curves import curve, smoothed
from lmms.train.watch.history import Column, History

_SMOOTH = 0.03
"""Steps that the smoothed curve averages, as a share of all steps."""
_NAMES = 12
"""Most rows under each heading."""
_HEAD = "smoothed, at the end"


def points(run: History, key: str) -> tuple[Column, Column, Column]:
    """float64 [points], each: steps, values, and these smoothed."""
    values = curve(run, key)
    known = np.isfinite(values)
    return run.steps[known].astype(np.float64), values[known], smoothed(values[known], _SMOOTH * known.sum())


def last_values(runs: Sequence[History], styles: Sequence[str], width: int) -> Table:
    """Norms by part, losses by set and source: a column for each run, in at most `width` cells. May have no rows."""
    charts = norms_and_losses_by_name(runs)
    longest = max((len(label) + 2 for chart in charts for _, label in chart.series[:_NAMES]), default=0)
    # Names of folders may be long: names of sources get their room first.
    names = min(max(longest, len(_HEAD)), width // 2)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(_HEAD, overflow="fold", max_width=names)
    for run, style in zip(runs, styles, strict=True):
        folder = Text(run.folder if len(runs) > 1 else "", style)
        table.add_column(folder, overflow="fold", max_width=max((width - names) // len(runs) - 2, 1))
    for chart in charts:
        table.add_row(Text(chart.title, "bold"))
        for key, label in chart.series[:_NAMES]:
            lasts = (number(float(points(run, key)[2][-1])) if has_curve(run, key) else "-" for run in runs)
            table.add_row(Text(f"  {label}", "dim"), *lasts)
        if more := chart.series[_NAMES:]:
            table.add_row(Text(f"  and {len(more)} more: see --html", "dim"))
    return table
