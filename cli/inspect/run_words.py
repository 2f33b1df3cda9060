"""Runs in words: summaries and differences."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lmms.cli import ui
from lmms.configs.stores.store import setting_text
from lmms.configs.words import counted

if TYPE_CHECKING:
    from lmms.train.watch.summary import Parting, Summary


def summary_rows(run: "Summary") -> Iterator[tuple[str, str]]:
    """Name and value of each row of the summary of a run."""
    from lmms.cli.inspect.charts import number

    of_all = f" of {run.steps:,}, {run.step / run.steps:.0%}" if run.steps else ""
    yield "step", f"{run.step:,}{of_all}, epoch {run.epoch:.3g}"
    yield "loss", f"{number(run.loss)} last, {number(run.best_loss)} lowest at step {run.best_loss_step:,}"
    if run.eval_loss is not None and run.best_eval_loss is not None:
        yield (
            "evaluation loss",
            f"{number(run.eval_loss)} last, {number(run.best_eval_loss)} lowest at step {run.best_eval_step:,}",
        )
    yield "tokens", f"{'' if run.every_step else 'about '}{ui.count(run.tokens)}"
    shares = [("target", run.target_share), ("visual", run.visual_share), ("padding on top", run.padding_share)]
    if known := [f"{share:.1%} {name}" for name, share in shares if share is not None]:
        yield "of these", ", ".join(known)
    of_what = f"all but {counted(run.profiled, 'profiled step')}" if run.profiled else "all of it"
    rate = f", {ui.count(run.tokens_per_s)} tokens/s over {of_what}" if math.isfinite(run.tokens_per_s) else ""
    yield "time", f"{ui.duration(3600 * run.hours)}{rate}"
    if run.mfu is not None and run.busy_mfu is not None:
        yield "MFU", f"{run.mfu:.1%} strict, {run.busy_mfu:.1%} busy"
    yield "waiting for data", f"{run.data_wait:.1%}"
    yield "memory", number(run.memory, "bytes")
    if run.resumes is not None:
        yield "resumed", counted(run.resumes, "time")
    # Other alarms of the log are about skipped steps, which have their own row.
    yield "parts without gradient", counted(run.alarms, "alarm") if run.alarms else "none"
    yield "masked conversations", f"{run.masked:,}"
    yield "skipped steps", f"{run.skipped:,}"
    if run.profiled:
        yield "profiled steps", f"{run.profiled:,}"
    for name, share in run.shares.items():
        yield f"share of {name}", f"{share:.1%}"


def parting_sentences(first: str, parting: "Parting") -> Iterator[str]:
    """Sentences about the differences between a run and the first run."""
    if not parting.common:
        yield f"{parting.folder} and {first} have no step in common"
        return
    packs = "the same packs" if parting.packs is None else f"other packs from step {parting.packs:,} on"
    until = "" if parting.packs is None else " before that"
    loss = "and the same losses" if parting.loss is None else f"other losses from step {parting.loss:,} on"
    most = "" if parting.loss is None or parting.most == 0 else f", {parting.most:.2g} apart at most{until} (relative)"
    yield f"{parting.folder} against {first}, {counted(parting.common, 'step')} of both: {packs}, {loss}{most}"
    for key, (before, after) in parting.settings.items():
        yield f"  {key}: {setting_text(before)} there, {setting_text(after)} here"
