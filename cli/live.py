"""The view of `lmms train` during a run: a live view on a terminal, a line for each step elsewhere."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice, pairwise
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from lmms.cli import ui
from lmms.cli.inspect.plot import sparkline
from lmms.cli.run_log import run_log
from lmms.configs.errors import LmmsError
from lmms.configs.words import counted

if TYPE_CHECKING:
    from lmms.train.watch.metrics import StepLog
    from lmms.train.watch.watch import Say

_NARROW, _WIDE = 16, 64
"""Fewest and most cells of a sparkline."""
_SOURCES_SHOWN = 6
_NAME_AND_VALUE = 34
"""Cells next to a sparkline, for names and values."""


@dataclass(slots=True)
class Trend:
    """The course of a number over any number of steps, in at most 2 * _WIDE means of equally many values."""

    means: list[tuple[float, int]] = field(default_factory=list)
    """Sum and number of values of each mean."""
    size: int = 1

    def add(self, value: float | None) -> None:
        """Add a value; None and values that are not finite change nothing."""
        if value is None or not isfinite(value):
            return
        if self.means and self.means[-1][1] < self.size:
            total, count = self.means[-1]
            self.means[-1] = (total + value, count + 1)
        else:
            self.means.append((value, 1))
        if len(self.means) > 2 * _WIDE:
            pairs = zip(self.means[::2], [*self.means[1::2], (0.0, 0)], strict=False)
            self.means = [(a + b, m + n) for (a, m), (b, n) in pairs]
            self.size *= 2

    def drawn(self, width: int) -> str:
        """The whole course in at most `width` bars."""
        cells = min(width, len(self.means))
        cuts = [round(i * len(self.means) / cells) for i in range(cells + 1)] if cells else []
        parts = [self.means[a:b] for a, b in pairwise(cuts)]
        return sparkline([sum(total for total, _ in part) / sum(count for _, count in part) for part in parts])


@dataclass(slots=True)
class Course:
    """The course of a run, as far as the view needs it."""

    first: "StepLog | None" = None
    """The first step of this process; `last` is the newest."""
    last: "StepLog | None" = None
    loss: Trend = field(default_factory=Trend)
    speed: Trend = field(default_factory=Trend)
    evaluation: Trend = field(default_factory=Trend)
    eval_loss: float | None = None
    sources: dict[str, float] = field(default_factory=dict)
    """The newest loss of each source with targets in a step of this process."""
    doing: str = ""
    """The announced work that goes on now and may take long, or ""."""

    def add(self, log: "StepLog") -> None:
        """Add the next step."""
        self.first, self.last = self.first or log, log
        self._add(log.loss, log.tokens_per_s, log.eval_loss)
        self.sources |= {name: loss for name, loss in log.loss_by_source.items() if isfinite(loss)}

    def go_on(self, output: Path, step: int) -> None:
        """Add the steps of metrics.jsonl before `step`: the curves of a resumed run are whole."""
        from lmms.train.watch.history import read_history

        try:
            run = read_history(output)
        except LmmsError:
            # The run goes on from its checkpoint whatever its log holds; the curves begin here.
            return
        for number, *values in zip(
            run.steps.tolist(),
            *(run.column(name).tolist() for name in ("loss", "tokens_per_s", "eval_loss")),
            strict=True,
        ):
            if number < step:
                self._add(*values)

    def _add(self, loss: float, speed: float, eval_loss: float | None) -> None:
        self.loss.add(loss)
        self.speed.add(speed)
        self.evaluation.add(eval_loss)
        if eval_loss is not None and isfinite(eval_loss):
            self.eval_loss = eval_loss

    def left(self) -> str:
        """The time for the steps to come, at the mean speed of the steps of this process."""
        if self.first is None or self.last is None or self.first is self.last:
            return ""
        each = (self.last.time - self.first.time) / (self.last.step - self.first.step)
        return f"{ui.duration(each * (self.last.steps - self.last.step))} left"


@contextmanager
def view(output: Path) -> Iterator["Say"]:
    """A live view of the run in this folder on a terminal, plain lines elsewhere; and train.log in the folder.

    The log also has the error or the Ctrl-C that ends the run.
    """
    out, course = ui.console(), Course()
    with _live(out, course) if out.is_terminal else _plain(course) as show:
        log = run_log(output, show)

        def say(event: "StepLog | str") -> None:
            if not isinstance(event, str) and course.first is None and event.resumed_from and out.is_terminal:
                course.go_on(output, event.step)
            show(event)
            log(event if isinstance(event, str) else line(event, course.left()))

        try:
            yield say
        except Exception as error:
            # A person looks here for errors of the device and of the network, which are not ours, above all.
            log(f"error: {error if isinstance(error, LmmsError) else f'{type(error).__name__}: {error}'}")
            raise
        except KeyboardInterrupt:
            say(interrupted(output, course.last.step if course.last else None))
            raise


@contextmanager
def _plain(course: Course) -> Iterator["Say"]:
    def show(event: "StepLog | str") -> None:
        if not isinstance(event, str):
            course.add(event)
        print(event if isinstance(event, str) else line(event, course.left()), flush=True)

    yield show


@contextmanager
def _live(out: Console, course: Course) -> Iterator["Say"]:
    with Live(Panel(course), console=out, refresh_per_second=8) as live:

        def show(event: "StepLog | str") -> None:
            course.doing = event if isinstance(event, str) and event.endswith(" ...") else ""
            if not isinstance(event, str):
                course.add(event)
            elif not course.doing:
                live.console.print(escape(event), style="bold red" if event.startswith("ALARM") else "dim")
            live.update(Panel(course), refresh=bool(course.doing))

        yield show


def interrupted(output: Path, step: int | None) -> str:
    """The message after Ctrl-C: which checkpoint is saved. step: the last step that was logged."""
    from lmms.train.checkpoint.read import list_checkpoints

    saved = next(reversed(list_checkpoints(output)[0]), None) if output.is_dir() else None
    where = f"after step {step}" if step else "before its first step was logged"
    if saved is None:
        return f"stopped by Ctrl-C {where}; nothing is saved: the same command starts again from step 0"
    return f"stopped by Ctrl-C {where}; {saved} is saved: the same command goes on from there"


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
    bars = min(max(width - _NAME_AND_VALUE, _NARROW), _WIDE)
    head = Table.grid(padding=(0, 2))
    head.add_row(
        f"[bold]step {log.step:,}[/] of {log.steps:,}",
        ProgressBar(log.steps, log.step, width=min(max(width - 50, 12), _WIDE)),
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
