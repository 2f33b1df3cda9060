"""The course of a run in little memory: what the view has to remember of all steps."""

from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from lmms.cli import ui
from lmms.cli.inspect.plot import sparkline
from lmms.configs.errors import LmmsError

if TYPE_CHECKING:
    from lmms.train.watch.metrics import StepLog

WIDEST = 64
"""Most cells of a sparkline."""


@dataclass(slots=True)
class Trend:
    """The course of a number over any number of steps, in at most 2 * WIDEST means of equally many values."""

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
        if len(self.means) > 2 * WIDEST:
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
