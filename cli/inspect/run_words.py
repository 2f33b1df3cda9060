"""What there is to say of runs, in words."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lmms.cli import ui
from lmms.configs.stores.store import setting_text
from lmms.configs.words import counted

if TYPE_CHECKING:
    from lmms.train.watch.summary import Parting, Summary


def summary_rows(one: "Summary") -> Iterator[tuple[str, str]]:
    """Name and value of what there is to say of a run."""
    from lmms.cli.inspect.charts import number

    of_all = f" of {one.steps:,}, {one.step / one.steps:.0%}" if one.steps else ""
    yield "step", f"{one.step:,}{of_all}, epoch {one.epoch:.3g}"
    yield "loss", f"{number(one.loss)} last, {number(one.best_loss)} lowest at step {one.best_loss_step:,}"
    if one.eval_loss is not None and one.best_eval_loss is not None:
        yield (
            "evaluation loss",
            f"{number(one.eval_loss)} last, {number(one.best_eval_loss)} lowest at step {one.best_eval_step:,}",
        )
    yield "tokens", f"{'' if one.every_step else 'about '}{ui.count(one.tokens)}"
    shares = [("target", one.target_share), ("visual", one.visual_share), ("padding on top", one.padding_share)]
    if known := [f"{share:.1%} {name}" for name, share in shares if share is not None]:
        yield "of these", ", ".join(known)
    of_what = f"all but {counted(one.profiled, 'profiled step')}" if one.profiled else "all of it"
    rate = f", {ui.count(one.tokens_per_s)} tokens/s over {of_what}" if math.isfinite(one.tokens_per_s) else ""
    yield "time", f"{ui.duration(3600 * one.hours)}{rate}"
    if one.mfu is not None and one.busy_mfu is not None:
        yield "MFU", f"{one.mfu:.1%} strict, {one.busy_mfu:.1%} busy"
    yield "waiting for data", f"{one.data_wait:.1%}"
    yield "memory", number(one.memory, "bytes")
    if one.resumes is not None:
        yield "resumed", counted(one.resumes, "time")
    # Other alarms of the log are of skipped steps: those have a row.
    yield "parts without gradient", counted(one.alarms, "alarm") if one.alarms else "none"
    yield "masked conversations", f"{one.masked:,}"
    yield "skipped steps", f"{one.skipped:,}"
    if one.profiled:
        yield "profiled steps", f"{one.profiled:,}"
    for name, share in one.shares.items():
        yield f"share of {name}", f"{share:.1%}"


def parting_sentences(first: str, one: "Parting") -> Iterator[str]:
    """What there is to say of how a run differs from the first one."""
    if not one.common:
        yield f"{one.folder} and {first} have no step in common"
        return
    packs = "the same packs" if one.packs is None else f"other packs from step {one.packs:,} on"
    until = "" if one.packs is None else " before that"
    loss = "and the same losses" if one.loss is None else f"other losses from step {one.loss:,} on"
    most = "" if one.loss is None or one.most == 0 else f", {one.most:.2g} apart at most{until} (relative)"
    yield f"{one.folder} against {first}, {counted(one.common, 'step')} of both: {packs}, {loss}{most}"
    for key, (before, after) in one.settings.items():
        yield f"  {key}: {setting_text(before)} there, {setting_text(after)} here"
