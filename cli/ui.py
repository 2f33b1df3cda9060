"""The look of the terminal, in one place: colours, progress, numbers for people."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lmms.configs.words import counted

if TYPE_CHECKING:
    import numpy.typing as npt

_BAR_WIDTH = 40
_WIDE = 100
"""Cells from which on progress has a bar: in fewer, the words take all the room."""
_PLAIN_SECONDS = 10.0
"""Seconds between two lines of progress, where there is no terminal."""
_AT_ONCE = ("copying",)
"""Stages that may wait for a server before there is anything to count."""


class ShowProgress(Protocol):
    """Function that a long command calls with its progress and a short text."""

    def __call__(self, stage: str, done: int, total: int, text: str) -> None: ...


def console(quiet: bool = False) -> Console:
    """Standard output: colours on a terminal, plain text elsewhere, nothing when quiet."""
    return Console(quiet=quiet, highlight=False)


def error_console() -> Console:
    """Standard error, for the one or two lines that say why a command stopped."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """A moving line on a terminal while the block runs, which may take seconds. On stderr: the output stays clean."""
    screen = Console(stderr=True, highlight=False)
    if not screen.is_terminal:
        yield
        return
    with screen.status(f"[dim]{what} ...[/]"):
        yield


@contextmanager
def progress(out: Console, unit: str = "%") -> Iterator[ShowProgress]:
    """A bar with rate and ETA on a terminal, a line now and then elsewhere. `unit` "%" hides the raw numbers."""
    if out.quiet:
        yield lambda stage, done, total, text: None
        return
    if not out.is_terminal:
        with _plain_progress(out) as show:
            yield show
        return
    count = TextColumn("{task.percentage:>3.0f}%") if unit == "%" else MofNCompleteColumn()
    is_wide = out.width >= _WIDE
    bar = BarColumn(bar_width=min(28, out.width - _WIDE + 14), complete_style="cyan", finished_style="green")
    columns = (
        TextColumn("[bold]{task.description:<8}"),
        *([bar] if is_wide else []),
        count,
        TextColumn("{task.fields[text]}"),
        *([TimeElapsedColumn()] if is_wide else []),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out) as bars:
        tasks = {}

        def show(stage: str, done: int, total: int, text: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total or None, text=text)
            bars.update(tasks[stage], completed=done, total=total or None, text=text)

        yield show


@contextmanager
def _plain_progress(out: Console) -> Iterator[ShowProgress]:
    """A line every few seconds, and the last line of each stage. A stage that waits for others has a line at once."""
    begun: dict[str, tuple[float, int]] = {}
    """Stage -> when its first part was done, and how much that was: the start of processes tells no rate."""
    printed: dict[str, float] = {}
    last: dict[str, str] = {}

    def flush() -> None:
        for line in last.values():
            out.print(Text(line), soft_wrap=True)
        last.clear()

    def show(stage: str, done: int, total: int, text: str) -> None:
        if stage not in last:
            flush()
        now = time.monotonic()
        share = f"{100 * done // total}% " if total else ""
        first, before = begun.setdefault(stage, (now, done)) if done else (now, 0)
        more = done - before
        left = f", about {duration((now - first) * (total - done) / more)} left" if more > 0 and done < total else ""
        last[stage] = f"{stage} {share}{text}{left}"
        if stage in _AT_ONCE and stage not in printed:
            printed[stage] = now
            flush()
        if now - printed.get(stage, now - _PLAIN_SECONDS / 2) >= _PLAIN_SECONDS:
            printed[stage] = now
            flush()
        printed.setdefault(stage, now - _PLAIN_SECONDS / 2)

    yield show
    flush()


def facts(title: str, rows: list[tuple[str, str]]) -> Table:
    """A closing table of name and value."""
    table = Table(
        title=Text(title), title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2)
    )
    table.add_column(style="dim")
    table.add_column(justify="left", overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))  # as text: a name may hold what looks like markup
    return table


def columns(title: str, *names: str) -> Table:
    """A table under these names: numbers, but the last column may be any text, which is folded if it is too long."""
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=None, padding=(0, 1), pad_edge=False)
    for name in names[:-1]:
        table.add_column(name, justify="right", header_style="dim", no_wrap=True)
    table.add_column(names[-1], header_style="dim", overflow="fold")
    return table


def histogram(title: str, values: "npt.NDArray[Any]", bins: int = 8) -> Table:
    """Bars of how many values fall into equal ranges, with the median and the extremes."""
    import numpy as np

    low, middle, high = (float(np.quantile(values, q)) for q in (0, 0.5, 1))
    form = ",.0f" if high >= 200 or np.issubdtype(values.dtype, np.integer) else ".1f"
    heading = f"[bold]{title}[/]  [dim]median {middle:{form}}, {low:{form}} to {high:{form}}[/]"
    table = Table(title=Text.from_markup(heading), title_justify="left", show_header=False, box=None, padding=(0, 1))
    table.add_column(justify="right", style="dim")
    table.add_column(style="cyan", min_width=_BAR_WIDTH)
    table.add_column(justify="right")
    # A few whole numbers get one bar each; other values get equal ranges.
    whole = low == high or (np.issubdtype(values.dtype, np.integer) and high - low < bins)
    edges = np.arange(low, high + 2) if whole else np.linspace(low, high if high > low else low + 1, bins + 1)
    counts, _ = np.histogram(values, edges)
    for number, start, end in zip(counts.tolist(), edges, edges[1:], strict=False):
        bar = "█" * round(_BAR_WIDTH * number / max(counts.max(), 1)) or ("▏" if number else "")
        table.add_row(f"{start:{form}}" if whole else f"{start:{form}} to {end:{form}}", bar, f"{number:,}")
    return table


def media_rows(counts: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """What the counts of a manifest say of pictures and videos, and of sounds, if there are any."""
    sounds = counts.get("sounds", 0)
    if counts["media"] > sounds:
        rows = f" with the rows of {counted(counts['videos'], 'video')}" if "videos" in counts else ""
        yield "images", f"{counts['media'] - sounds:,}{rows}, {counted(counts['patches'], 'patch', 'patches')}"
    if sounds:
        yield "sounds", f"{sounds:,} of {duration(counts.get('sound_seconds', 0))} in all"


def count(number: float, digits: int = 1) -> str:
    """12345678 -> 12.3 M. digits: after the point, if there is a unit."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if number >= size:
            return f"{number / (size if unit != ' k' else 1e3):.{digits}f}{unit}"
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """40 -> 40 s, 400 -> 6 min 40 s, 4000 -> 1 h 6 min, 400000 -> 4 d 15 h."""
    whole = round(seconds)
    for size, unit, below, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // below} {part}"
    return f"{whole} s"
