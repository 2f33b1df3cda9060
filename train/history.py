"""What a run has written about itself, read back: metrics.jsonl as columns, its sum, and where two runs part.

Nothing heavy is loaded, and a run may still be writing: a last line without its end is left out.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmms.configs.errors import TrainError
from lmms.configs.store import shown_setting
from lmms.configs.yaml12 import parse_yaml
from lmms.train.metrics import METRICS_NAME

_NEEDED = ("loss", "lr", "grad_norm", "tokens", "tokens_per_s", "data_wait", "memory", "epoch", "time")
"""In every line, since the first version."""

Column = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class History:
    """The logged steps of a run, in order."""

    folder: str
    steps: npt.NDArray[np.int64]
    columns: Mapping[str, Column]
    """[lines]: every number of the lines, under its key, inner keys after a slash; NaN in a line without it."""
    digests: npt.NDArray[np.str_]
    """[lines]: of the packs of each step; "" in a line without it."""
    alarms: tuple[tuple[int, str], ...]
    """Step and part."""
    settings: Mapping[str, Any]
    """Dotted key -> value of config.yaml, without credentials; empty where the folder has none."""

    def column(self, name: str) -> Column:
        """float64 [lines]; all NaN where no line has this key, as in files of before it."""
        return self.columns.get(name, np.full(len(self.steps), np.nan))

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
            # null: it was not finite
            _ = [entry[name] is None or float(entry[name]) for name in _NEEDED]
            alarms += [(entry["step"], str(part)) for part in entry.get("alarms", ())]
            rows.append(dict(_numbers(entry)))
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A run in a few numbers. None where its lines do not say."""

    folder: str
    step: int
    steps: int | None
    """Of the whole run."""
    loss: float
    """Of the last step, and the lowest with its step."""
    best_loss: float
    best_loss_step: int
    eval_loss: float | None
    best_eval_loss: float | None
    best_eval_step: int | None
    tokens: float
    """Of all steps: exact where every step was logged, else see total_tokens."""
    every_step: bool
    """Whether every step from the first of this folder up to the last was logged."""
    target_share: float | None
    """Of the tokens; so are the next two."""
    visual_share: float | None
    padding_share: float | None
    """Beside the tokens: computed for nothing."""
    hours: float
    """From first to last step on the clock, without the time between a stop and its resumption."""
    tokens_per_s: float
    """tokens over those hours: evaluations and checkpoints cost, too."""
    mfu: float | None
    """Mean over the steps' seconds; so are the next two."""
    busy_mfu: float | None
    data_wait: float
    memory: float
    """Bytes at the peak."""
    epoch: float
    resumes: int | None
    alarms: int
    masked: int
    """Conversations with weight 0 since an image failed."""
    skipped: int
    """Steps whose update was left out."""
    shares: dict[str, float]
    """Of the target weight, of each set of a mixture; empty for one set."""


def summarize(run: History) -> Summary:
    """The sum of a run."""
    seconds = step_seconds(run)
    evals = run.column("eval_loss")
    total = float(total_tokens(run)[-1])
    hours = float(elapsed(run)[-1])
    best, best_eval = _lowest(run.column("loss")), _lowest(evals)
    return Summary(
        folder=run.folder,
        step=int(run.steps[-1]),
        steps=_last_int(run.column("steps")),
        loss=float(run.column("loss")[-1]),
        best_loss=float(run.column("loss")[best or 0]),
        best_loss_step=int(run.steps[best or 0]),
        eval_loss=float(evals[np.isfinite(evals)][-1]) if best_eval is not None else None,
        best_eval_loss=float(evals[best_eval]) if best_eval is not None else None,
        best_eval_step=int(run.steps[best_eval]) if best_eval is not None else None,
        tokens=total,
        every_step=len(run.steps) == int(run.steps[-1]) - _begun_at(run),
        target_share=_share(run, "target_tokens"),
        visual_share=_share(run, "visual_tokens"),
        padding_share=_share(run, "padding_tokens"),
        hours=hours,
        tokens_per_s=total / (3600 * hours) if hours else math.nan,
        mfu=_mean(run.column("mfu"), seconds),
        busy_mfu=_mean(run.column("busy_mfu"), seconds * (1 - run.column("data_wait"))),
        data_wait=_mean(run.column("data_wait"), seconds) or 0.0,
        memory=float(np.max(run.column("memory"), initial=0.0, where=np.isfinite(run.column("memory")))),
        epoch=float(run.column("epoch")[-1]),
        resumes=len(np.unique(run.column("resumed_from"))) - 1 + int(run.column("resumed_from")[0] > 0)
        if run.has("resumed_from")
        else None,
        alarms=len(run.alarms),
        masked=int(np.nansum(run.column("masked"))),
        skipped=int((run.column("skipped") > 0).sum()),
        shares={
            name.removeprefix("sets/").removesuffix("/share"): float(np.nansum(column) / len(column))
            for name, column in run.columns.items()
            if name.startswith("sets/") and name.endswith("/share")
        },
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Parting:
    """Where another run parts from the first one, among the steps that both logged."""

    folder: str
    common: int
    """Steps that both logged."""
    packs: int | None
    """The first step that consumed other packs."""
    loss: int | None
    """The first step with another loss, to the last digit."""
    most: float
    """The largest relative difference of the losses up to where the packs part."""
    settings: dict[str, tuple[Any, Any]]
    """Settings that differ: their values in the first run and in this one."""


def parting(one: History, other: History) -> Parting:
    """Where `other` parts from `one`."""
    common, a, b = np.intersect1d(one.steps, other.steps, return_indices=True)
    packs = _first(common, one.digests[a] != other.digests[b])
    x, y = one.column("loss")[a], other.column("loss")[b]
    # Of steps that were skipped the losses may not be finite.
    alike = np.isfinite(x) & np.isfinite(y) & (True if packs is None else common < packs)
    apart = np.abs(x[alike] - y[alike]) / np.maximum(np.abs(x[alike]), np.abs(y[alike]))
    keys = one.settings.keys() | other.settings.keys() if one.settings and other.settings else ()
    return Parting(
        folder=other.folder,
        common=len(common),
        packs=packs,
        loss=_first(common, (x != y) & ~(np.isnan(x) & np.isnan(y))),
        most=float(np.max(apart, initial=0.0)),
        settings={
            key: (one.settings.get(key), other.settings.get(key))
            for key in sorted(keys)
            if one.settings.get(key) != other.settings.get(key)
        },
    )


def smoothed(values: Column, span: float) -> Column:
    """float64 [values]: exponential mean over about `span` values, unbiased at the start; NaN keeps what was before.

    Source: the bias correction of Adam (arXiv 1412.6980).
    """
    keep = 1 - min(2 / (span + 1), 1.0)
    mean, weight, result = 0.0, 0.0, np.full(len(values), np.nan)
    for i, value in enumerate(values.tolist()):
        if np.isfinite(value):
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        if weight:
            result[i] = mean / weight
    return result


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Buckets:
    """A column in few enough points to draw: the mean, lowest and highest of runs of neighbours."""

    last: npt.NDArray[np.int64]
    """[points]: the index of each one's last line."""
    mean: Column
    low: Column
    high: Column


def bucketed(values: Column, most: int) -> Buckets:
    """At most so many points of the finite values of a column."""
    finite = np.flatnonzero(np.isfinite(values))
    count = min(len(finite), most)
    starts = np.arange(count) * len(finite) // max(count, 1)
    last = np.append(starts[1:], len(finite))[:count] - 1
    kept = values[finite]
    empty = np.empty(0)
    return Buckets(
        last=finite[last],
        mean=np.add.reduceat(kept, starts) / np.diff(starts, append=len(kept)) if count else empty,
        low=np.minimum.reduceat(kept, starts) if count else empty,
        high=np.maximum.reduceat(kept, starts) if count else empty,
    )


def total_tokens(run: History) -> Column:
    """float64 [lines]: tokens up to each step; a step that was not logged counts as the logged one after it."""
    return np.cumsum(run.column("tokens") * np.diff(run.steps, prepend=_begun_at(run)))


def step_seconds(run: History) -> Column:
    """float64 [lines]: of each step; by its tokens and their rate in files of before `seconds`."""
    return run.column("seconds") if run.has("seconds") else run.column("tokens") / run.column("tokens_per_s")


def elapsed(run: History) -> Column:
    """float64 [lines]: hours on the clock up to each step, without the time between a stop and its resumption."""
    seconds, times, sessions = step_seconds(run), run.column("time"), run.column("resumed_from")
    took = np.diff(times, prepend=times[0] - seconds[0])
    starts = np.flatnonzero(np.diff(sessions, prepend=sessions[0]) > 0)
    took[starts] = seconds[starts]
    return np.cumsum(took) / 3600


def _begun_at(run: History) -> int:
    """The step after which this folder's first line was taken: that of the checkpoint of another run, if of any."""
    first = run.column("resumed_from")[0]
    return int(first) if np.isfinite(first) else 0


def _numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, float(value)


def _settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    body = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(body, Mapping):
        raise TrainError(
            f"{path} is damaged: it holds {body!r:.40}, expected keys and values; without it the rest is shown"
        )
    return dict(_flat(body))


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, shown_setting(inner)


def _lowest(values: Column) -> int | None:
    """Where the lowest finite value is."""
    return int(np.nanargmin(np.where(np.isfinite(values), values, np.nan))) if np.isfinite(values).any() else None


def _first(steps: npt.NDArray[np.int64], which: npt.NDArray[np.bool_]) -> int | None:
    return int(steps[which][0]) if which.any() else None


def _last_int(values: Column) -> int | None:
    return int(values[-1]) if np.isfinite(values[-1]) else None


def _mean(values: Column, weights: Column) -> float | None:
    """Over the lines that have it."""
    known = np.isfinite(values) & np.isfinite(weights)
    return float(np.average(values[known], weights=weights[known])) if known.any() else None


def _share(run: History, name: str) -> float | None:
    return float(np.nansum(run.column(name)) / np.nansum(run.column("tokens"))) if run.has(name) else None
