"""Others' recipes on the same packs: transformers' own models and forward, stepped by the trainer's own step.

Weights, optimizer, clipping, mixed precision and sharding are the trainer's, so what differs is what is done with a
batch. Batches stand ready in pinned memory: no time is taken for making them.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

from transformers import PretrainedConfig

from lmms.configs.contract.manifest import open_dataset
from lmms.configs.settings.optim import OptimConfig
from lmms.train.batch.recipe import make_recipe
from lmms.train.data.costs import pack_flops
from lmms.train.data.mixture import Phase
from lmms.train.data.sets import make_order, open_sets
from lmms.train.data.steps import StepPlan, plan_steps
from lmms.train.model.build import blocks, init_random, materialize
from lmms.train.model.flops import model_cost
from lmms.train.optim.groups import make_optimizer, trained_parts
from lmms.train.parallel.sharding import shard_model
from lmms.train.parallel.world import compute_dtype, start_world, stop_world
from lmms.train.step import StepResult, take_step
from lmms.train.watch.marks import Mark, unmarked
from lmms.train.watch.signals import Asked
from tools.gpu.models import model_config
from tools.gpu.packs import pack_file
from tools.gpu.plain import PlainBatch, packed_batches, padded_batches
from tools.gpu.recipes import COMPARATORS
from tools.gpu.sizes import Sizes
from tools.gpu.steps import faults_of, time_steps
from tools.gpu.theirs import build_comparator
from tools.gpu.traces import trace_step
from tools.gpu.training import Measured, update_bytes
from tools.gpu.waits import waits_in


def measure_comparator(
    name: str, model: str, packs: str, folder: str, seconds: float, sizes: Sizes
) -> Iterator[Measured]:
    """Measure a recipe on a file of packs, as training.measure_training measures a rung."""
    deadline, recipe = time.monotonic() + seconds, COMPARATORS[name]
    config = model_config(model, thin=sizes.thin)
    with ExitStack() as held:
        world = start_world(sizes.device)
        held.callback(stop_world)
        dtype = compute_dtype(sizes.precision, world.device)
        comparator = build_comparator(config, recipe, world.device)
        shard_model(comparator, blocks(comparator), world, dtype)
        materialize(comparator, world.device)
        init_random(comparator, seed=0)
        optimizer = make_optimizer(comparator, OptimConfig(lr={"default": 1e-4}))
        parts = trained_parts(comparator)
        shown = pack_file(folder, packs)
        dataset = open_dataset(Path(folder) / packs)
        made = (packed_batches if recipe.packed else padded_batches)(
            shown, make_recipe([dataset.manifest], config, "stop")
        )
        ready = [batch.pinned() for batch in made] if world.device.type == "cuda" else list(made)
        plan = _plan(Path(folder) / packs, config, ready)
        arriving = (batch.to(world.device) for batch in cycle(ready))

        def take(mark: Mark = unmarked) -> StepResult:
            of_run = (comparator, optimizer, parts, plan, cast(Any, arriving), world)
            return take_step(*of_run, 1.0, 1.0, Asked(), lambda coming: None, mark)

        steps = time_steps(take, sizes, world.device, deadline)
        parameters = sum(parameter.numel() for parameter in comparator.parameters())
        faults = faults_of(steps)
        cost = model_cost(config)
        found = Measured(
            model=model,
            packs=packs,
            name=name,
            says=[],
            parameters=parameters,
            trained=parameters,
            tokens=plan.tokens,
            target_tokens=plan.target_tokens,
            patches=sum(pack.patches for pack in shown),
            flops=sum(pack_flops(cost, pack) for pack in shown),
            steps=steps,
            seconds=steps.median,
            tokens_per_s=plan.tokens / steps.median,
            recompute="full",
            optimizer_bytes=update_bytes(optimizer),
            faults=faults,
            passed=not faults,
        )
        yield found
        found.waits = waits_in(take)
        yield found
        found.trace = trace_step(take, optimizer, "", world.device)
        yield found


def _plan(folder: Path, config: PretrainedConfig, ready: list[PlainBatch]) -> StepPlan:
    """A step over all of these batches, which hold the packs of the folder."""
    sets = open_sets([folder])
    order = make_order(sets, Phase(), model_cost(config), seed=0, global_packs=len(sets.tokens))
    (plan,) = islice(plan_steps(order, sets), 1)
    passes = [plan.passes[0]] * len(ready)
    return replace(plan, passes=passes, has_images=["pixel_values" in batch.inputs for batch in ready])
