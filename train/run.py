"""`lmms train`, from the settings to the last checkpoint, on one screen."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import islice, tee
from pathlib import Path

import torch

from lmms.configs.hashing import key64
from lmms.configs.load import to_yaml
from lmms.configs.manifest import Dataset, open_dataset
from lmms.configs.mds import INDEX_NAME
from lmms.configs.model_folder import ModelFolder
from lmms.configs.train import Part, TrainConfig
from lmms.train.batch import make_recipe
from lmms.train.checkpoint import (
    TrainerState,
    list_checkpoints,
    load_checkpoint,
    read_state,
    resume_from,
    save_checkpoint,
    tensors_of,
)
from lmms.train.fit import fitting_model, model_of
from lmms.train.loader import batches
from lmms.train.metrics import (
    StepLog,
    alarmed_parts,
    append_metrics,
    count_zero_steps,
    open_metrics,
    peak_memory,
)
from lmms.train.model import blocks, init_random, materialize
from lmms.train.optim import freeze, learning_rate, make_optimizer, trained_parts
from lmms.train.order import ORDER_VERSION, Order, micro_steps, step_packs
from lmms.train.parallel import World, compute_dtype, shard_model, start_world, stop_world
from lmms.train.resume import changes, locked, on_main, resumed_state
from lmms.train.step import StepPlan, StepResult, plan_steps, take_step
from lmms.train.stream import read_sidecar
from lmms.train.weights import load_pretrained

Report = Callable[[StepLog | str], None]
"""Called on rank 0: with each logged step, and with each line that a person should read."""


def train(config: TrainConfig, report: Report) -> None:
    """Train as one of the ranks that the environment announces (RANK, WORLD_SIZE, ...), or alone without it.

    Raises the classes of configs/errors.py. Writes checkpoints, metrics.jsonl and config.yaml into config.output.
    """
    world = start_world(config.device)
    output = Path(config.output).expanduser()
    try:
        with ExitStack() as held:
            on_main(world, lambda: held.enter_context(locked(output)))
            _train(config, output, world, report if world.is_main else lambda event: None)
    except BaseException:
        # With others in the group, leaving it could wait for them, who wait for this one: the launcher ends them.
        if world.size == 1:
            stop_world()
        raise
    stop_world()


def _train(config: TrainConfig, output: Path, world: World, report: Report) -> None:
    dataset = open_dataset(Path(config.data.shards).expanduser())
    folder = fitting_model(config.model.path, dataset)
    sidecar = read_sidecar(dataset)
    order = Order(num_packs=len(sidecar), seed=config.seed, global_packs=config.data.global_packs)
    found = on_main(world, lambda: resume_from(config.resume, output))
    # Now and not after the weights were read: can the ranks share a step?
    micro_steps(step_packs(order, 0), world.rank, world.size, config.data.micro_packs)

    model = model_of(folder.path, config.model.recompute)
    recipe = make_recipe(dataset.manifest, model.hf.config, config.data.on_bad_media)
    freeze(model, config.model.freeze)
    shard_model(model, blocks(model), world, compute_dtype(config.model.precision, world.device))
    materialize(model, world.device)
    optimizer = make_optimizer(model, config.optim)
    parts = trained_parts(model)

    state = _start_state(config, dataset, folder)
    if found:
        stored = read_state(found)
        state = resumed_state(state, stored, found)
        load_checkpoint(found, tensors_of(model, optimizer))
    elif config.model.init == "random":
        init_random(model, config.seed)
    else:
        load_pretrained(model.hf, folder.path)
    if world.is_main:
        _open_output(output, config, state, report)
    if order.global_packs > order.num_packs:
        report(
            f"an epoch has {order.num_packs} packs, fewer than data.global_packs ({order.global_packs}):"
            " a step takes some packs more than once"
        )
    report(f"resumed from {found} at step {state.step}" if found else "started at step 0")
    for line in changes(stored.config, state.config) if found else ():
        report(line)
    if state.step >= config.max_steps:
        report(f"nothing left to do: the run is at step {state.step} of max_steps {config.max_steps}")

    every = plan_steps(order, sidecar, world.rank, world.size, config.data.micro_packs, state.step, state.position)
    plans, ahead = tee(islice(every, max(config.max_steps - state.step, 0)))
    own_packs = (packs for plan in ahead for packs in plan.micro_steps)
    loader = batches(dataset, sidecar, recipe, own_packs, config.data.workers)
    for plan in plans:
        began = time.perf_counter()
        torch.manual_seed(key64("step", config.seed, plan.step, world.rank))
        lr = learning_rate(plan.step, config.optim, config.max_steps)
        result = take_step(model, optimizer, parts, plan, loader, world, lr, config.optim.max_grad_norm)
        seconds = time.perf_counter() - began
        last, state = state, _next_state(state, plan, result)
        alarms = alarmed_parts(last.zero_steps, state.zero_steps)
        for sentence in result.masked:
            report(f"masked: {sentence}")
        for part in alarms:
            report(f"ALARM: {part} is trained, but its gradient was 0 for {state.zero_steps[part]} steps that reach it")
        is_last = plan.step == config.max_steps
        if world.is_main and (plan.step % config.log_steps == 0 or is_last or alarms):
            log = _step_log(
                plan, result, lr, seconds, state.position / order.num_packs, peak_memory(world.device), alarms
            )
            append_metrics(output, log)
            report(log)
        if plan.step % config.save_steps == 0 or is_last:
            saved = save_checkpoint(output, state, tensors_of(model, optimizer), world, config.save_total_limit)
            report(f"saved {saved}")


def _open_output(output: Path, config: TrainConfig, state: TrainerState, report: Report) -> None:
    """The output folder as a run that stands at `state` goes on with it."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    open_metrics(output, state.step)
    for unfinished in list_checkpoints(output)[1]:
        report(f"not used, since it is not complete: {unfinished}")


def _next_state(state: TrainerState, plan: StepPlan, result: StepResult) -> TrainerState:
    """The state after a step. The position moves here, after the update: packs only read ahead are not in it."""
    reached = {part: part == "llm" or any(plan.has_images) for part in result.part_norms}
    zero_steps = count_zero_steps(state.zero_steps, result.part_norms, reached)
    return replace(state, step=plan.step, position=plan.position + len(plan.packs), zero_steps=zero_steps)


def _step_log(
    plan: StepPlan,
    result: StepResult,
    lr: float,
    seconds: float,
    epoch: float,
    memory: int,
    alarms: tuple[Part, ...],
) -> StepLog:
    return StepLog(
        step=plan.step,
        loss=result.loss,
        lr=lr,
        grad_norm=result.grad_norm,
        grad_norm_llm=result.part_norms.get("llm"),
        grad_norm_vision=result.part_norms.get("vision"),
        grad_norm_aligner=result.part_norms.get("aligner"),
        tokens=plan.tokens,
        target_tokens=plan.target_tokens,
        tokens_per_s=plan.tokens / seconds,
        data_wait=result.waited / seconds,
        memory=memory,
        epoch=epoch,
        position=plan.position + len(plan.packs),
        masked=len(result.masked),
        time=time.time(),
        alarms=alarms,
    )


def _start_state(config: TrainConfig, dataset: Dataset, folder: ModelFolder) -> TrainerState:
    return TrainerState(
        step=0,
        position=0,
        seed=config.seed,
        order=ORDER_VERSION,
        shards=dataset.manifest.files[INDEX_NAME]["xxh3"],
        model=str(folder.path.resolve()),
        zero_steps={},
        config=asdict(config),
    )
