"""train.log: what the terminal said of a run, in its output folder."""

import time
from collections.abc import Callable
from pathlib import Path

LOG_NAME = "train.log"


def run_log(output: Path, failed: Callable[[str], None]) -> Callable[[str], None]:
    """A function that adds lines to the log of a run, each with the time.

    Lines wait until the output folder is there: a run that is refused makes none. failed: is called once with a
    sentence where the log cannot be written; the run goes on, its record is metrics.jsonl.
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
            broken.append(f"ALARM: {output / LOG_NAME} cannot be written ({error.strerror}); the run goes on without")
            failed(broken[0])

    return add
