"""The phases of a step, named by the code that takes the step: for errors, and for the ranges of a profile."""

from collections.abc import Callable
from itertools import takewhile

from torch.profiler import record_function

Mark = Callable[[str], None]
"""Called with the phase that begins, such as "pass 2/backward": the phase lasts until the next call."""


def unmarked(path: str) -> None:
    """A Mark that nobody listens to."""


class Marks:
    """The latest mark of a step; while `ranges` is set, also the open ranges of a profiler's trace."""

    def __init__(self) -> None:
        self.path = ""
        self.ranges = False
        self._open: list[tuple[str, record_function]] = []

    def __call__(self, path: str) -> None:
        """See Mark. A slash is between a range and a range inside it; "" ends all ranges."""
        self.path = path
        if self.ranges or self._open:
            self._reopen(path.split("/") if path and self.ranges else [])

    def inside(self, name: str) -> None:
        """A mark below "pass/phase", in place of another mark there."""
        self("/".join([*self.path.split("/")[:2], name]))

    def _reopen(self, names: list[str]) -> None:
        pairs = zip(self._open, names, strict=False)
        kept = len(list(takewhile(lambda pair: pair[0][0] == pair[1], pairs)))
        while len(self._open) > kept:
            _, opened = self._open.pop()
            opened.__exit__(None, None, None)
        for name in names[kept:]:
            opened = record_function(name)
            opened.__enter__()  # type: ignore[no-untyped-call]
            self._open.append((name, opened))
