"""train.log: the lines that the terminal showed of a run, in the output folder."""

import time
from collections.abc import Callable
from pathlib import Path

from lmms.configs.room import why_not

LOG_NAME = "train.log"


def run_log(output: Path, failed: Callable[[str], None]) -> Callable[[str], None]:
    """A function that adds lines to the log of a run, each with the time.

    Lines wait until the output folder exists: a run that is refused makes no folder. failed: called once with a
    sentence if the log cannot be written; the run goes on, and metrics.jsonl is its record.
    """
    waiting: list[str] = []
    broken: list[str] = []

    def add(line: str) -> None:
        waiting.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        if broken or not output.is_dir():
            return
        try:
            with (output / LOG_NAME).open("a", encoding="utf-8") as file:
                file.writelines(waiting)
            waiting.clear()
        except OSError as error:
            reason = why_not(error, output, len("".join(waiting)))
            broken.append(f"ALARM: {output / LOG_NAME} cannot be written ({reason}); the run goes on without")
            failed(broken[0])

    return add
