"""The listeners of a run while it trains, and what signals asked for: the one value that all long work takes."""

from collections.abc import Callable
from dataclasses import dataclass

from lmms.train.watch.marks import Mark, unmarked
from lmms.train.watch.metrics import StepLog
from lmms.train.watch.signals import Asked

Say = Callable[[StepLog | str], None]
"""Called on rank 0: with each logged step, and with each line that a person should read."""

Beat = Callable[[str], None]
"""Called with the work that comes next, so that a rank which hangs can say where: see watchdog."""


def _unheard(event: object) -> None:
    """Nobody listens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """The listeners of a run. Each listener may be left out."""

    say: Say = _unheard
    beat: Beat = _unheard
    mark: Mark = unmarked
    """Called with each phase of a step, for a profile and for errors."""
    asked: Asked
    """What signals asked this process for."""

    def begin(self, what: str) -> None:
        """Tell the watchdog and a person that work begins which may take seconds. A line that ends in " ..." is shown
        until the next line comes."""
        self.beat(what)
        self.say(f"{what} ...")


def unwatched() -> Watch:
    """A Watch that nobody listens to, for your own loop."""
    return Watch(asked=Asked())
