"""Which numbers of a run are drawn, under which heading, and how they read: for the terminal and for the page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lmms.cli import ui
from lmms.train.history import History

Unit = Literal["", "s", "share", "bytes", "count"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """Numbers that share a frame."""

    title: str
    unit: Unit
    series: tuple[tuple[str, str], ...]
    """(key of metrics.jsonl, label) of each curve; the first one is the chart's in a terminal."""


CHARTS = (
    Chart(title="loss", unit="", series=(("loss", "loss"),)),
    Chart(title="evaluation loss", unit="", series=(("eval_loss", "all"),)),
    Chart(
        title="gradient norm",
        unit="",
        series=(
            ("grad_norm", "all"),
            ("grad_norm_llm", "llm"),
            ("grad_norm_vision", "vision"),
            ("grad_norm_aligner", "aligner"),
        ),
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
            ("padding_tokens_per_s", "padding"),
        ),
    ),
    Chart(title="MFU", unit="share", series=(("mfu", "strict"), ("busy_mfu", "busy"))),
    Chart(title="waiting for data", unit="share", series=(("data_wait", "wait"),)),
    Chart(title="memory", unit="bytes", series=(("memory", "peak"),)),
)
_FAMILIES = (
    ("loss by set", "", "sets/", "/loss"),
    ("share by set", "share", "sets/", "/share"),
    ("evaluation loss by source", "", "eval_loss_by_source/", ""),
)
"""Title, unit, and what stands before and after the name in the keys of charts with a curve for each name."""


def charts_of(runs: Sequence[History]) -> Iterator[Chart]:
    """The charts for which any of these runs has a number, with the curves that have."""
    names = sorted({name for run in runs for name in run.columns if run.has(name)})
    families = [
        Chart(
            title=title,
            unit=unit,  # type: ignore[arg-type]
            series=tuple(
                (name, name[len(start) : len(name) - len(end)])
                for name in names
                if name.startswith(start) and name.endswith(end)
            ),
        )
        for title, unit, start, end in _FAMILIES
    ]
    for chart in (*CHARTS, *families):
        series = tuple((key, label) for key, label in chart.series if key in names)
        if series:
            yield Chart(title=chart.title, unit=chart.unit, series=series)


def number(value: float, unit: Unit = "") -> str:
    """A value as a person reads it, in at most eight characters or so."""
    if unit == "share":
        return f"{value:.1%}"
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB"
    if unit == "count":
        return ui.count(value)
    return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"
