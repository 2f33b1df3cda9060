"""The charts of a run: numbers, headings and formats, for the terminal and for the page."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lmms.cli import ui
from lmms.configs.by_part import PARTS
from lmms.train.watch.curves import curve
from lmms.train.watch.history import History

Unit = Literal["", "share", "bytes", "count"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """Numbers that share a frame."""

    title: str
    unit: Unit
    series: tuple[tuple[str, str], ...]
    """(key of metrics.jsonl, label) of each curve; a terminal draws the first curve."""


CHARTS = (
    Chart(title="loss", unit="", series=(("loss", "loss"),)),
    Chart(title="evaluation loss", unit="", series=(("eval_loss", "all"),)),
    Chart(
        title="gradient norm",
        unit="",
        series=(("grad_norm", "all"), *((f"grad_norm_{part}", part) for part in PARTS)),
    ),
    Chart(title="learning rate", unit="", series=(("lr", "lr"),)),
    Chart(
        title="tokens a second",
        unit="count",
        series=(
            ("tokens_per_s", "all"),
            ("target_tokens_per_s", "target"),
            ("prompt_tokens_per_s", "prompt"),
            ("visual_tokens_per_s", "visual"),
            ("sound_tokens_per_s", "sound"),
            ("padding_tokens_per_s", "padding"),
        ),
    ),
    Chart(title="MFU", unit="share", series=(("mfu", "strict"), ("busy_mfu", "busy"))),
    Chart(title="waiting for data", unit="share", series=(("data_wait", "wait"),)),
    Chart(title="memory", unit="bytes", series=(("memory", "peak"),)),
)
_FAMILIES: tuple[tuple[str, Unit, str, str], ...] = (
    ("loss by set", "", "sets/", "/loss"),
    ("share by set", "share", "sets/", "/share"),
    ("loss by source", "", "loss_by_source/", ""),
    ("evaluation loss by source", "", "eval_loss_by_source/", ""),
)
"""Title, unit, and the start and end of the keys of charts with a curve for each name."""
_SUM = "all"
_MORE_DIGITS = 12
"""Digits on top; float64 has no more."""
_TOGETHER = 12
"""Most curves in one frame that eyes can tell apart."""


def charts_of(runs: Sequence[History]) -> list[Chart]:
    """The charts and curves for which any of these runs has a number."""
    return _with_numbers(CHARTS, runs)


def all_charts(runs: Sequence[History]) -> list[Chart]:
    """The charts of charts_of, and the charts with a curve for each set or source."""
    return _with_numbers([*CHARTS, *_families(runs)], runs)


def norms_and_losses_by_name(runs: Sequence[History]) -> list[Chart]:
    """Norms and losses by part, set and source, without the first curve of each chart of charts_of."""
    charts = [*(replace(chart, series=chart.series[1:]) for chart in CHARTS), *_families(runs)]
    return _with_numbers([chart for chart in charts if chart.unit == ""], runs)


def _families(runs: Sequence[History]) -> list[Chart]:
    names = sorted({name for run in runs for name in run.columns})
    return [
        Chart(
            title=title,
            unit=unit,
            series=tuple(
                (name, name.removeprefix(start).removesuffix(end))
                for name in names
                if name.startswith(start) and name.endswith(end)
            ),
        )
        for title, unit, start, end in _FAMILIES
    ]


def _with_numbers(charts: Sequence[Chart], runs: Sequence[History]) -> list[Chart]:
    with_curves = (
        replace(chart, series=tuple(entry for entry in chart.series if any(has_curve(run, entry[0]) for run in runs)))
        for chart in charts
    )
    return [chart for chart in with_curves if chart.series]


def has_curve(run: History, key: str) -> bool:
    """Whether a curve of this column has any point."""
    return bool(np.isfinite(curve(run, key)).any())


def shown_of_a_run(chart: Chart, runs: Sequence[History]) -> int:
    """How many curves of each run the page shows at first."""
    if chart.series[0][1] == _SUM and len(runs) > 1 and len(chart.series) > 2:
        return 1
    curves = sum(has_curve(run, key) for run in runs for key, _ in chart.series)
    return len(chart.series) if curves <= _TOGETHER else max(1, _TOGETHER // len(runs))


def number(value: float, unit: Unit = "", more: int = 0) -> str:
    """A value for people to read, in about eight characters at most; `more` digits on top."""
    if unit == "share":
        return f"{value:.{1 + more}%}"
    if unit == "bytes":
        return f"{value / 1e9:.{2 + more}f} GB"
    if unit == "count":
        return ui.count(value, 1 + more)
    return f"{value:.{4 + more}g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.{2 + more}e}"


def marks(values: Sequence[float], unit: Unit = "") -> list[str]:
    """Labels of an axis: the values with as few digits as tell them apart."""
    written = ([number(value, unit, more) for value in values] for more in range(_MORE_DIGITS))
    return next((texts for texts in written if len(set(texts)) == len(values)), [number(v, unit) for v in values])
