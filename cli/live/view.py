"""The view of `lmms train` during a run: a live view on a terminal, a line for each step elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from lmms.cli import ui
from lmms.cli.live.course import Course
from lmms.cli.live.panel import Panel, line
from lmms.cli.live.run_log import run_log
from lmms.configs.errors import LmmsError

if TYPE_CHECKING:
    from lmms.train.watch.metrics import StepLog
    from lmms.train.watch.watch import Say


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
