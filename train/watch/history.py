"""What a run has written about itself, read back: metrics.jsonl as columns.

Nothing heavy is loaded, and a run may still be writing: a last line without its end is left out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmms.configs.errors import TrainError
from lmms.configs.nested import flat
from lmms.configs.stores.store import shown_setting
from lmms.configs.yaml12 import parse_yaml
from lmms.train.watch.metrics import METRICS_NAME

_NEEDED = ("loss", "lr", "grad_norm", "tokens", "tokens_per_s", "data_wait", "memory", "epoch", "time")
"""Keys of every line, since the first version."""

Column = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class History:
    """The logged steps of a run, in order."""

    folder: str
    steps: npt.NDArray[np.int64]
    columns: Mapping[str, Column]
    """[lines]: every number of the lines, under its key, inner keys after a slash; NaN in a line without the key."""
    digests: npt.NDArray[np.str_]
    """[lines]: digest of the packs of each step; "" in a line without a digest."""
    alarms: tuple[tuple[int, str], ...]
    """Step and part."""
    settings: Mapping[str, Any]
    """Dotted key -> value of config.yaml, without credentials; empty where the folder has no config.yaml."""

    def column(self, name: str) -> Column:
        """float64 [lines]; all NaN where no line has this key, as in older files."""
        return self.columns.get(name, np.full(len(self.steps), np.nan))

    @property
    def skipped(self) -> npt.NDArray[np.bool_]:
        """bool [lines]: steps whose update was left out."""
        return self.column("skipped") > 0

    @property
    def profiled(self) -> npt.NDArray[np.bool_]:
        """bool [lines]: steps that a profiler slowed."""
        return self.column("profiled") > 0

    def has(self, name: str) -> bool:
        """Whether any line has a finite number under this key."""
        return bool(np.isfinite(self.column(name)).any())


def read_history(folder: Path) -> History:
    """The history of the run in this output folder. TrainError for another folder, no steps, or a damaged line."""
    path = folder / METRICS_NAME
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise TrainError(
            f"{path} cannot be read ({error.strerror}); expected the output folder of a run of `lmms train`"
        ) from error
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    if not lines:
        raise TrainError(f"{path} has no step yet; a run writes its first line after its first step")
    steps: list[int] = []
    digests: list[str] = []
    alarms: list[tuple[int, str]] = []
    rows: list[dict[str, float]] = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if type(entry["step"]) is not int or (steps and entry["step"] <= steps[-1]):
                raise ValueError(f"step is {entry['step']!r}, expected a number above {steps[-1] if steps else 0}")
            # null: a number that was not finite
            _ = [entry[name] is None or float(entry[name]) for name in _NEEDED]
            alarms += [(entry["step"], str(part)) for part in entry.get("alarms", ())]
            rows.append(_numbers(entry))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            what = f"{type(error).__name__}: {error}"
            raise TrainError(
                f"{path} is damaged in line {number} ({what}); without it the rest can be shown"
            ) from error
        steps.append(entry["step"])
        digests.append(str(entry.get("digest", "")))
    names = dict.fromkeys(name for row in rows for name in row)
    return History(
        folder=str(folder),
        steps=np.array(steps, np.int64),
        columns={name: np.array([row.get(name, np.nan) for row in rows]) for name in names},
        digests=np.array(digests),
        alarms=tuple(alarms),
        settings=_settings(folder / "config.yaml"),
    )


def total_tokens(run: History) -> Column:
    """float64 [lines]: tokens up to each step; a step that was not logged counts as the logged step after it."""
    return np.cumsum(run.column("tokens") * np.diff(run.steps, prepend=begun_at(run)))


def step_seconds(run: History) -> Column:
    """float64 [lines]: seconds of each step; from its tokens and their rate in older files, without `seconds`."""
    return run.column("seconds") if run.has("seconds") else run.column("tokens") / run.column("tokens_per_s")


def elapsed(run: History) -> Column:
    """float64 [lines]: hours on the clock up to each step, without the time between a stop and its resumption."""
    seconds, times, sessions = step_seconds(run), run.column("time"), run.column("resumed_from")
    took = np.diff(times, prepend=times[0] - seconds[0])
    starts = np.flatnonzero(np.diff(sessions, prepend=sessions[0]) > 0)
    took[starts] = seconds[starts]
    return np.cumsum(took) / 3600


def begun_at(run: History) -> int:
    """The step after which this folder begins: the step of another run's checkpoint, or 0."""
    first = run.column("resumed_from")[0]
    return int(first) if np.isfinite(first) else 0


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in flat(line, "/").items() if isinstance(value, int | float)}


def _settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    body = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(body, Mapping):
        raise TrainError(
            f"{path} is damaged: it holds {body!r:.40}, expected keys and values; without it the rest is shown"
        )
    return {key: shown_setting(value) for key, value in flat(body, ".").items()}
