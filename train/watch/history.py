"""What a run has written about itself, read back: metrics.jsonl as columns.

Nothing heavy is loaded, and a run may still be writing: a last line without its end is left out.
"""

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
from lmms.train.watch.metrics import METRICS_NAME, damaged_line, metrics_lines

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
    if not path.is_file():
        raise TrainError(f"{path} cannot be read (no such file); expected the output folder of a run of `lmms train`")
    lines = metrics_lines(folder)
    if not lines:
        raise TrainError(f"{path} has no step yet; a run writes its first line after its first step")
    alarms: list[tuple[int, str]] = []
    rows: list[dict[str, float]] = []
    for number, line in enumerate(lines, 1):
        try:
            # null: a number that was not finite
            _ = [line[name] is None or float(line[name]) for name in _NEEDED]
            alarms += [(line["step"], str(part)) for part in line.get("alarms", ())]
            rows.append(_numbers(line))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise damaged_line(path, number, error) from error
    names = dict.fromkeys(name for row in rows for name in row)
    return History(
        folder=str(folder),
        steps=np.array([line["step"] for line in lines], np.int64),
        columns={name: np.array([row.get(name, np.nan) for row in rows]) for name in names},
        digests=np.array([str(line.get("digest", "")) for line in lines]),
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
