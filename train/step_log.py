"""What there is to say of a step that was taken."""

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lmms.configs.by_part import Part
from lmms.configs.stores.store import shown
from lmms.configs.words import short_places
from lmms.train.batch.recipe import Recipe, loss_by_group
from lmms.train.data.mixture import cursors_at
from lmms.train.data.order import Order
from lmms.train.data.phases import RunPhase
from lmms.train.data.steps import StepPlan
from lmms.train.evaluate import Evaluation
from lmms.train.step import StepResult
from lmms.train.watch.metrics import SetLog, StepLog


def step_log(
    plan: StepPlan,
    result: StepResult,
    order: Order,
    phase: RunPhase,
    recipe: Recipe,
    evaluation: Evaluation | None,
    *,
    steps: int,
    lr: float,
    seconds: float,
    memory: int,
    peak: float | None,
    resumed_from: int,
    skipped: int,
    profiled: bool = False,
    alarms: Sequence[Part],
) -> StepLog:
    """The line of a step that took so many seconds, without its evaluation.

    peak: operations a second of all ranks together, where that is known.
    """
    flops = float(order.costs[plan.packs].sum())
    prompt_tokens = plan.tokens - plan.target_tokens - plan.visual_tokens
    position = plan.position + len(plan.packs)
    of_sets = np.zeros((len(order.sets), 2))
    np.add.at(of_sets, recipe.group_sets, result.groups)
    sets = _set_logs(of_sets, order, phase, position)
    return StepLog(
        step=plan.step,
        steps=steps,
        loss=result.loss,
        lr=lr,
        grad_norm=result.grad_norm,
        grad_norm_llm=result.part_norms.get("llm"),
        grad_norm_vision=result.part_norms.get("vision"),
        grad_norm_aligner=result.part_norms.get("aligner"),
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
        mfu=flops / (seconds * peak) if peak else None,
        busy_mfu=flops / ((seconds - result.waited) * peak) if peak else None,
        data_wait=result.waited / seconds,
        memory=memory,
        epoch=sum(log.epoch * len(one.costs) for log, one in zip(sets.values(), order.sets, strict=True))
        / len(order.costs),
        position=position,
        digest=f"{result.digest:016x}",
        masked=len(result.masked),
        skipped=skipped,
        time=time.time(),
        resumed_from=resumed_from,
        profiled=profiled,
        alarms=tuple(alarms),
        sets=sets if len(sets) > 1 else {},
        loss_by_source=loss_by_group(recipe, result.groups) if recipe.by == "source" and recipe.num_groups > 1 else {},
        eval_loss=evaluation.loss if evaluation else None,
        eval_loss_by_source=evaluation.by_source if evaluation else {},
    )


def _set_logs(of_sets: npt.NDArray[np.float64], order: Order, phase: RunPhase, position: int) -> dict[str, SetLog]:
    """Short name of each set -> what it had in the step, and how far it is. A name in use twice has a number."""
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
