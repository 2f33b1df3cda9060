"""A step in one line of a log, and the panel of a terminal."""

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from lmms.cli import ui
from lmms.cli.live.course import WIDEST, Course
from lmms.configs.words import counted

if TYPE_CHECKING:
    from lmms.train.watch.metrics import StepLog

_NARROW = 16
"""Fewest cells of a sparkline."""
_SOURCES_SHOWN = 6
_NAME_AND_VALUE = 34
"""Cells next to a sparkline, for names and values."""


def line(log: "StepLog", left: str) -> str:
    """A step in one line of a log."""
    rows = [
        ("loss", f"{log.loss:.4f}"),
        *((name, f"{value} ({more})" if more else value) for name, value, more in facts(log)),
    ]
    text = "  ".join(f"{name} {value}" for name, value in rows)
    return f"step {log.step}/{log.steps}  {text}  {left}".rstrip()


class Panel:
    """The live view: progress with the time left, curves of the whole run, the facts of the newest step."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._spinner = Spinner("dots", Text(course.doing, style="dim"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._course.last is not None:
            yield _panel(self._course, self._course.last, options.max_width)
        if self._course.doing:
            yield self._spinner


def _panel(course: Course, log: "StepLog", width: int) -> RenderableType:
    bars = min(max(width - _NAME_AND_VALUE, _NARROW), WIDEST)
    head = Table.grid(padding=(0, 2))
    head.add_row(
        f"[bold]step {log.step:,}[/] of {log.steps:,}",
        ProgressBar(log.steps, log.step, width=min(max(width - 50, 12), WIDEST)),
        f"{log.step / log.steps:.0%}",
        f"[dim]{course.left()}[/]",
    )
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("loss", f"[bold]{log.loss:.4f}[/]", f"[cyan]{course.loss.drawn(bars)}[/]")
    for name, value, more in facts(log):
        if name == "tokens/s":
            table.add_row(name, value, f"[green]{course.speed.drawn(bars)}[/]")
            table.add_row("", "", Text(more))
        elif name != "evaluation":
            table.add_row(name, value, Text(more))
    if course.eval_loss is not None:
        table.add_row("evaluation", f"{course.eval_loss:.4f}", f"[magenta]{course.evaluation.drawn(bars)}[/]")
    if course.sources:
        table.add_row("sources", str(len(course.sources)), Text(_first_sources(course.sources)))
    return Group(head, table)


def _first_sources(sources: Mapping[str, float]) -> str:
    """Name and loss of the first sources."""
    shown = [f"{name} {loss:.4f}" for name, loss in islice(sources.items(), _SOURCES_SHOWN)]
    more = len(sources) - len(shown)
    return ", ".join(shown) + (f", and {more} more in metrics.jsonl" if more else "")


def facts(log: "StepLog") -> list[tuple[str, str, str]]:
    """Name, value and details of each number besides the loss, in reading order."""
    kinds = {
        "target": log.target_tokens_per_s,
        "prompt": log.prompt_tokens_per_s,
        "visual": log.visual_tokens_per_s,
        **({} if log.sound_tokens_per_s is None else {"sound": log.sound_tokens_per_s}),
        "padding": log.padding_tokens_per_s,
    }
    sets = ", ".join(f"{name} {'-' if share.loss is None else f'{share.loss:.4f}'}" for name, share in log.sets.items())
    rows = [
        ("tokens/s", ui.count(log.tokens_per_s), ", ".join(f"{kind} {ui.count(rate)}" for kind, rate in kinds.items())),
        ("evaluation", f"{log.eval_loss:.4f}" if log.eval_loss is not None else "", ""),
        ("lr", f"{log.lr:.3g}", ""),
        (
            "gradient",
            f"{log.grad_norm:.3g}",
            ", ".join(f"{part} {norm:.3g}" for part, norm in log.grad_norms.items() if norm is not None),
        ),
        ("MFU", f"{log.mfu:.1%}" if log.mfu is not None else "", f"{log.busy_mfu:.1%} busy" if log.busy_mfu else ""),
        ("waiting", f"{log.data_wait:.1%}", "of the time, for data"),
        ("memory", f"{log.memory / 1e9:.2f} GB", ""),
        ("epoch", f"{log.epoch:.3f}", f"{counted(log.position, 'pack')}"),
        ("sets", str(len(log.sets) or ""), sets),
        ("masked", f"{log.masked}" if log.masked else "", "conversations with a bad image"),
        ("skipped", f"{log.skipped}" if log.skipped else "", "steps in a row that were not finite"),
        ("profiled", "yes" if log.profiled else "", "slower than other steps"),
    ]
    return [row for row in rows if row[1]]
