"""A run in a few numbers, and where two runs part: what `lmms inspect run` says next to its curves."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lmms.train.watch.curves import curve
from lmms.train.watch.history import Column, History, begun_at, elapsed, step_seconds, total_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A run in a few numbers. None where its lines do not say."""

    folder: str
    step: int
    steps: int | None
    """Steps of the whole run."""
    loss: float
    """Loss of the last step; then the lowest loss and its step."""
    best_loss: float
    best_loss_step: int
    eval_loss: float | None
    best_eval_loss: float | None
    best_eval_step: int | None
    tokens: float
    """Tokens of all steps: exact where every step was logged, else see total_tokens."""
    every_step: bool
    """Whether every step from the first of this folder up to the last was logged."""
    target_share: float | None
    """Share in the tokens; so are the next two."""
    visual_share: float | None
    padding_share: float | None
    """Tokens computed for nothing, which are not in `tokens`."""
    hours: float
    """From first to last step on the clock, without the time between a stop and its resumption."""
    tokens_per_s: float
    """tokens / hours, so evaluations and checkpoints count. Profiled steps are left out, here and in the next three;
    NaN where every step was profiled."""
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
    profiled: int
    """Steps that a profiler slowed."""
    shares: dict[str, float]
    """Share of each set of a mixture in the target weight; empty for one set."""


def summarize(run: History) -> Summary:
    """The summary of a run."""
    seconds = np.where(run.profiled, np.nan, step_seconds(run))
    evals = run.column("eval_loss")
    best, best_eval = _lowest(curve(run, "loss")), _lowest(evals)
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
        tokens=float(total_tokens(run)[-1]),
        every_step=len(run.steps) == int(run.steps[-1]) - begun_at(run),
        target_share=_share(run, "target_tokens"),
        visual_share=_share(run, "visual_tokens"),
        padding_share=_share(run, "padding_tokens"),
        hours=float(elapsed(run)[-1]),
        tokens_per_s=_rate(run),
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
        skipped=int(run.skipped.sum()),
        profiled=int(run.profiled.sum()),
        shares={
            name.removeprefix("sets/").removesuffix("/share"): float(np.nansum(column) / len(column))
            for name, column in run.columns.items()
            if name.startswith("sets/") and name.endswith("/share")
        },
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Parting:
    """The steps at which another run parts from the first run, among the steps that both logged."""

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
    """Settings that differ: their values in the first run and in this run."""


def parting(first: History, other: History) -> Parting:
    """The steps at which `other` parts from `first`."""
    common, a, b = np.intersect1d(first.steps, other.steps, return_indices=True)
    packs = _first(common, first.digests[a] != other.digests[b])
    x, y = first.column("loss")[a], other.column("loss")[b]
    # The losses of skipped steps may not be finite.
    alike = np.isfinite(x) & np.isfinite(y) & (True if packs is None else common < packs)
    apart = np.abs(x[alike] - y[alike]) / np.maximum(np.abs(x[alike]), np.abs(y[alike]))
    keys = first.settings.keys() | other.settings.keys() if first.settings and other.settings else ()
    return Parting(
        folder=other.folder,
        common=len(common),
        packs=packs,
        loss=_first(common, (x != y) & ~(np.isnan(x) & np.isnan(y))),
        most=float(np.max(apart, initial=0.0)),
        settings={
            key: (first.settings.get(key), other.settings.get(key))
            for key in sorted(keys)
            if first.settings.get(key) != other.settings.get(key)
        },
    )


def _lowest(values: Column) -> int | None:
    """Index of the lowest finite value; None where no value is finite."""
    return int(np.nanargmin(np.where(np.isfinite(values), values, np.nan))) if np.isfinite(values).any() else None


def _first(steps: npt.NDArray[np.int64], which: npt.NDArray[np.bool_]) -> int | None:
    return int(steps[which][0]) if which.any() else None


def _last_int(values: Column) -> int | None:
    return int(values[-1]) if np.isfinite(values[-1]) else None


def _mean(values: Column, weights: Column) -> float | None:
    """Weighted mean over the lines that have the value."""
    known = np.isfinite(values) & np.isfinite(weights) & (weights > 0)
    return float(np.average(values[known], weights=weights[known])) if known.any() else None


def _rate(run: History) -> float:
    """Tokens a second by the clock, without profiled steps and the writing of their profile."""
    tokens, took = np.diff(total_tokens(run), prepend=0), 3600 * np.diff(elapsed(run), prepend=0)
    # The profile is written after the line of its last step, until the next step begins.
    after = np.append(False, run.profiled[:-1])
    took[after] = step_seconds(run)[after]
    seconds = float(took[~run.profiled].sum())
    return float(tokens[~run.profiled].sum()) / seconds if seconds else math.nan


def _share(run: History, name: str) -> float | None:
    return float(np.nansum(run.column(name)) / np.nansum(run.column("tokens"))) if run.has(name) else None
