"""The line that is logged of a step that was taken."""

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmms.configs.by_part import PARTS, Part
from lmms.configs.stores.store import shown
from lmms.configs.words import short_places
from lmms.train.batch.recipe import Recipe, loss_by_group
from lmms.train.data.mixture import cursors_at
from lmms.train.data.order import Order
from lmms.train.data.phases import RunPhase
from lmms.train.data.steps import StepPlan
from lmms.train.evaluation import Evaluation
from lmms.train.step import StepResult
from lmms.train.watch.metrics import SetLog, StepLog


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Course:
    """What a run's steps are made of, the same from the first step to the last."""

    order: Order
    phase: RunPhase
    recipe: Recipe
    steps: int
    """Steps of the whole run."""
    lr: float
    """The peak learning rate of what optim.lr does not name."""
    resumed_from: int
    """Step of the checkpoint that the run goes on from; 0 without a checkpoint."""
    peak: float | None
    """Operations a second of all ranks together by their data sheet, where that is known."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TakenStep:
    """A step that was taken."""

    plan: StepPlan
    result: StepResult
    lr_share: float
    seconds: float
    memory: int
    """Bytes at the peak so far, see metrics.peak_memory."""
    alarms: tuple[Part, ...] = ()
    """Trained parts without a gradient, see metrics.alarmed_parts."""


def step_log(
    course: Course, taken: TakenStep, skipped: int, evaluation: Evaluation | None, *, profiled: bool = False
) -> StepLog:
    """The line of a step in metrics.jsonl.

    skipped: steps in a row up to this step that were not finite. evaluation: made after the step, if any.
    """
    plan, result, order, recipe, seconds = taken.plan, taken.result, course.order, course.recipe, taken.seconds
    flops = float(order.costs[plan.packs].sum())
    prompt_tokens = plan.tokens - plan.target_tokens - plan.visual_tokens - plan.sound_tokens
    hears = recipe.sets[0].limits.audio is not None
    position = plan.position + len(plan.packs)
    of_sets = np.zeros((len(order.sets), 2))
    np.add.at(of_sets, recipe.group_sets, result.groups)
    sets = _set_logs(of_sets, order, course.phase, position)
    return StepLog(
        step=plan.step,
        steps=course.steps,
        loss=result.loss,
        lr=taken.lr_share * course.lr,
        grad_norm=result.grad_norm,
        grad_norms={part: result.part_norms.get(part) for part in PARTS},
        tokens=plan.tokens,
        target_tokens=plan.target_tokens,
        prompt_tokens=prompt_tokens,
        visual_tokens=plan.visual_tokens,
        padding_tokens=plan.padding_tokens,
        seconds=seconds,
        tokens_per_s=plan.tokens / seconds,
        target_tokens_per_s=plan.target_tokens / seconds,
        prompt_tokens_per_s=prompt_tokens / seconds,
        visual_tokens_per_s=plan.visual_tokens / seconds,
        padding_tokens_per_s=plan.padding_tokens / seconds,
        flops=flops,
        mfu=flops / (seconds * course.peak) if course.peak else None,
        busy_mfu=flops / ((seconds - result.waited) * course.peak) if course.peak else None,
        data_wait=result.waited / seconds,
        memory=taken.memory,
        epoch=sum(log.epoch * len(set_order.costs) for log, set_order in zip(sets.values(), order.sets, strict=True))
        / len(order.costs),
        position=position,
        digest=f"{result.digest:016x}",
        masked=len(result.masked),
        skipped=skipped,
        time=time.time(),
        resumed_from=course.resumed_from,
        sound_tokens=plan.sound_tokens if hears else None,
        sound_tokens_per_s=plan.sound_tokens / seconds if hears else None,
        profiled=profiled,
        alarms=taken.alarms,
        sets=sets if len(sets) > 1 else {},
        loss_by_source=loss_by_group(recipe, result.groups) if recipe.by == "source" and recipe.num_groups > 1 else {},
        eval_loss=evaluation.loss if evaluation else None,
        eval_loss_by_source=evaluation.by_source if evaluation else {},
    )


def _set_logs(of_sets: npt.NDArray[np.float64], order: Order, phase: RunPhase, position: int) -> dict[str, SetLog]:
    """Short name of each set -> its log of the step. Sets with the same name get a number."""
    cursors = cursors_at(order.phase, position)
    total = of_sets[:, 1].sum()
    places = short_places([shown(share.shards) for share in phase.sets])
    return {
        places[k] if places.count(places[k]) == 1 else f"{places[k]} ({k})": SetLog(
            loss=float(loss / weight) if weight else None,
            share=float(weight / total),
            epoch=cursors[k] / len(order.sets[k].costs),
        )
        for k, (loss, weight) in enumerate(of_sets)
    }
