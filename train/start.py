"""A run up to its first step: shards, order, model, optimizer, and where it goes on from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from lmms.configs.by_part import Part
from lmms.configs.errors import TrainError
from lmms.configs.files import write_whole
from lmms.configs.load import to_yaml
from lmms.configs.settings.train import TrainConfig
from lmms.train.batch.recipe import Recipe
from lmms.train.checkpoint.initial import fill_initial, plan_initial
from lmms.train.checkpoint.keep import Measure, resumed_best
from lmms.train.checkpoint.read import TrainerState, list_checkpoints, load_checkpoint, read_state, tensors_of
from lmms.train.checkpoint.resume import changes, resume_from, resumed_state
from lmms.train.data.order import Order
from lmms.train.data.phases import RunPhase, go_on, order_of, phase_from_json, run_steps, write_phases
from lmms.train.data.sets import Sets
from lmms.train.model.build import blocks, keep_in, materialize
from lmms.train.model.deterministic import deterministic_kernels, refuse_cudnn
from lmms.train.model.forward import TrainModel
from lmms.train.model.kernels import choose_kernels, compile_blocks, this_machine, use_kernels, write_kernels
from lmms.train.model.offload import LEAST_BYTES, copy_on_stream, offload_blocks, pinned_room
from lmms.train.optim.groups import make_optimizer, trained_parts
from lmms.train.optim.rules import muon_line
from lmms.train.optim.table import Row, table_lines, trained_table, write_table
from lmms.train.parallel.sharding import shard_model
from lmms.train.parallel.world import World, compute_dtype, on_main
from lmms.train.plan.cards import ranks_peak
from lmms.train.plan.open import MOST_SOURCES, Opened, open_run, padded, remarks
from lmms.train.plan.out_of_memory import START, explaining_out_of_memory
from lmms.train.watch.metrics import open_metrics
from lmms.train.watch.profile import check_profile, window_of, window_remarks


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Run:
    """What stays the same from the first step to the last, on one rank."""

    config: TrainConfig
    output: Path
    world: World
    opened: Opened
    sets: Sets
    phase: RunPhase
    steps: int
    """Of the whole run."""
    order: Order
    recipe: Recipe
    model: TrainModel
    optimizer: torch.optim.Optimizer
    parts: Mapping[Part, Sequence[nn.Parameter]]
    held: frozenset[str]
    """The parameters that checkpoints hold."""
    resumed_from: int
    """Step of the checkpoint that it goes on from; 0 without one."""
    peak: float | None
    """Operations a second of all ranks together, see flops.ranks_peak."""
    evaluated: Sets | None
    """The shards of `eval`; with them goes eval_recipe."""
    eval_recipe: Recipe | None
    measure: Measure | None
    """Of the best checkpoint."""


def start(
    config: TrainConfig, output: Path, world: World, say: Callable[[str], None], beat: Callable[[str], None]
) -> tuple[Run, TrainerState]:
    """The run, with the weights of the checkpoint that it goes on from, and its state there. All ranks together.

    say is called with what a person should know, on rank 0; beat with what comes next, for the watchdog.
    """
    dtype = compute_dtype(config.model.precision, world.device)
    machine = this_machine(world.device, dtype)
    kernels = choose_kernels(deterministic_kernels(config), machine)
    refuse_cudnn(config, kernels, world.device)
    opened = open_run(config, beat, world.share, partial(on_main, world))
    sets, evaluated, model, now, fresh = opened.sets, opened.evaluated, opened.model, opened.phase, opened.fresh
    recipe, eval_recipe = padded(config, opened) if kernels.compile else (opened.recipe, opened.eval_recipe)
    use_kernels(model, kernels, keeps_products="elementwise" in (config.memory.recompute, config.memory.vision))

    found = resume_from(config.resume, output, world, say)
    stored = read_state(found) if found else None
    state = resumed_state(fresh, stored, found, config.resume_changes) if found and stored else fresh
    phases = go_on([phase_from_json(phase) for phase in state.phases], now, state.step, state.position)
    steps = run_steps(config, phases)
    check_profile(config.profile, world.device.type, world.size, state.step, steps)
    measure = _measure(config, evaluated)
    best = on_main(world, lambda: resumed_best(output, state.best, measure, say))
    state = replace(state, phases=[asdict(phase) for phase in phases], best=best)

    initial = plan_initial(config, opened.folder.path, model, partial(on_main, world), found, say)
    state = replace(state, base=asdict(initial.base))
    keep_in(model, dtype, initial.held)
    if kernels.compile:
        compile_blocks(blocks(model))
    if config.memory.offload_bytes:
        room = pinned_room(config.memory.offload_bytes, world.device)
        offload_blocks(model, blocks(model), room, copy_on_stream(world.device), LEAST_BYTES)
    parallel = config.parallel
    shard_model(model, blocks(model), world, dtype, parallel.reshard, parallel.offload)
    with explaining_out_of_memory(config, output, world, opened, initial.held, lambda: START, beat):
        materialize(model, world.device, parallel.offload)
        optimizer = make_optimizer(model, config.optim)
        beat("reading the weights")
        fill_initial(initial, model, config.seed)
        if found:
            load_checkpoint(found, tensors_of(model, optimizer, initial.held), verified=True)
    table = trained_table(model, optimizer)
    if world.is_main:
        _open_output(output, config, state, phases, table, say)
        write_kernels(output, kernels, machine)
    say(f"resumed from {found} at step {state.step}" if found else "started at step 0")
    for line in changes(stored.config, state.config) if stored else ():
        say(line)
    say(f"kernels: {kernels}")
    for line in table_lines(table):
        say(line)
    if config.optim.name == "muon":
        say(muon_line(model))
    for line in window_remarks(config.profile, window_of(config.profile, state.step, steps)):
        say(line)
    run = Run(
        config=config,
        output=output,
        world=world,
        opened=opened,
        sets=sets,
        phase=phases[-1],
        steps=steps,
        order=order_of(sets, phases[-1]),
        recipe=recipe,
        model=model,
        optimizer=optimizer,
        parts=trained_parts(model),
        held=initial.held,
        resumed_from=state.step,
        peak=ranks_peak(world.device, world.size),
        evaluated=evaluated,
        eval_recipe=eval_recipe,
        measure=measure,
    )
    for line in remarks(config, run.order, run.phase, world.data_size, run.steps, state):
        say(line)
    for loss, of in (("loss", recipe), ("evaluation's loss", eval_recipe)):
        if of and of.by == "set":
            sources = sum(len(one.sources) for one in of.sets)
            say(f"the {loss} is not logged by source: the shards have {sources:,}, more than {MOST_SOURCES}")
    if world.device.type == "cuda" and run.peak is None:
        name = torch.cuda.get_device_name(world.device)
        say(f"mfu is not logged: no data sheet of {name!r} is in train/model/flops.py, PEAK_FLOPS")
    return run, state


def _measure(config: TrainConfig, evaluated: Sets | None) -> Measure | None:
    metric = config.metric_for_best_model
    if metric is None:
        return None
    shards = evaluated.datasets[0].index_hash if evaluated and metric == "eval_loss" else ""
    loss_weight = config.loss_weight if metric == "loss" else ""
    return Measure(metric=metric, greater=config.greater_is_better, shards=shards, loss_weight=loss_weight)


def _open_output(
    output: Path,
    config: TrainConfig,
    state: TrainerState,
    phases: Sequence[RunPhase],
    table: Sequence[Row],
    say: Callable[[str], None],
) -> None:
    """The output folder as a run that stands at `state` goes on with it."""
    try:
        write_whole(output / "config.yaml", to_yaml(config))
        write_phases(output, phases)
        write_table(output, table)
        open_metrics(output, state.step)
    except OSError as error:
        raise TrainError(
            f"{output} cannot be written: {error.strerror}; make room, or choose another output"
        ) from error
    for unfinished in list_checkpoints(output)[1]:
        say(f"not used, since it is not complete: {unfinished}")
