"""A run up to its first step: shards, order, model, optimizer, and the checkpoint that it goes on from."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lmms.configs.errors import TrainError
from lmms.configs.files import write_whole
from lmms.configs.load import to_yaml
from lmms.configs.room import no_room
from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.initial import Initial, fill_initial, plan_initial
from lmms.train.checkpoint.keep import resumed_best
from lmms.train.checkpoint.read import list_checkpoints, load_checkpoint, tensors_of
from lmms.train.checkpoint.resume import changes, resume_from
from lmms.train.checkpoint.state import Measure, TrainerState
from lmms.train.data.phases import order_of, write_phases
from lmms.train.data.sets import Sets
from lmms.train.evaluation import EvalSet
from lmms.train.model.build import blocks, keep_in, materialize
from lmms.train.model.deterministic import deterministic_kernels, refuse_cudnn
from lmms.train.model.forward import TrainModel
from lmms.train.model.kernels import choose_kernels, compile_blocks, this_machine, use_kernels, write_kernels
from lmms.train.model.offload import LEAST_BYTES, copy_on_stream, offload_blocks, pinned_room
from lmms.train.optim.groups import make_optimizer, trained_parts
from lmms.train.optim.rules import muon_line
from lmms.train.optim.table import table_lines, trained_table, write_table
from lmms.train.parallel.sharding import shard_model
from lmms.train.parallel.world import World, compute_dtype
from lmms.train.plan.cards import ranks_peak
from lmms.train.plan.likely_mistakes import likely_mistakes
from lmms.train.plan.open import MOST_SOURCES, Opened, open_run, padded, remarks
from lmms.train.plan.out_of_memory import BEFORE_STEPS, MemoryContext, explaining_out_of_memory
from lmms.train.plan.stand import Stand, stand_of
from lmms.train.step import Learner
from lmms.train.step_log import Course
from lmms.train.watch.metrics import open_metrics
from lmms.train.watch.profile import check_profile, window_of, window_remarks
from lmms.train.watch.watch import Watch

_FILES_BYTES = 2**20
"""More than the files take with which a run begins in its output folder, without metrics.jsonl."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Run:
    """A run on one rank: what stays the same from the first step to the last."""

    config: TrainConfig
    output: Path
    world: World
    sets: Sets
    course: Course
    learner: Learner
    checkpointed: frozenset[str]
    """The parameters that checkpoints hold."""
    memory: MemoryContext
    eval_set: EvalSet | None
    measure: Measure | None
    """What the best checkpoint is chosen by."""


def start(config: TrainConfig, world: World, watch: Watch, *, backend: str = "inductor") -> tuple[Run, TrainerState]:
    """The run, with the weights of the checkpoint that it goes on from, and its state there. All ranks together.

    backend: torch.compile's, for kernels.compile.
    """
    output = Path(config.output).expanduser()
    machine = this_machine(world.device, compute_dtype(config.model.precision, world.device))
    kernels = choose_kernels(deterministic_kernels(config), machine)
    refuse_cudnn(config, kernels, world.device)
    opened = open_run(config, watch.begin, world.share, world.once)
    use_kernels(opened.model, kernels, keeps_products="elementwise" in (config.memory.recompute, config.memory.vision))
    if kernels.compile:
        opened = padded(config, opened)
    stand = stand_of(config, opened.fresh, opened.phase, resume_from(config.resume, output, world, watch.say))
    check_profile(config.profile, world.device.type, world.size, stand.state.step, stand.steps)
    measure = _measure(config, opened.evaluated)
    best = world.once(lambda: resumed_best(output, stand.state.best, measure, watch.say))
    initial = plan_initial(config, opened.folder.path, opened.model, world.once, stand.checkpoint, watch.say)
    state = replace(stand.state, best=best, base=initial.base)

    prepare(config, opened.model, world, initial.checkpointed, backend=backend if kernels.compile else None)
    memory = MemoryContext(config=config, output=output, world=world, opened=opened, checkpointed=initial.checkpointed)
    with explaining_out_of_memory(memory, lambda: BEFORE_STEPS, watch):
        optimizer = _filled(config, opened.model, world, initial, stand.checkpoint, watch)
    learner = Learner(
        model=opened.model,
        optimizer=optimizer,
        parts=trained_parts(opened.model),
        max_grad_norm=config.optim.max_grad_norm,
        world=world,
    )
    course = Course(
        order=order_of(opened.sets, stand.phase),
        phase=stand.phase,
        recipe=opened.recipe,
        steps=stand.steps,
        lr=config.optim.lr["default"],
        resumed_from=state.step,
        peak=ranks_peak(world.device, world.size),
    )
    table = trained_table(opened.model, optimizer)
    if world.is_main:
        with _writing(output):
            write_whole(output / "config.yaml", to_yaml(config))
            write_phases(output, stand.phases)
            write_table(output, table)
            open_metrics(output, state.step)
            write_kernels(output, kernels, machine)
        for unfinished in list_checkpoints(output)[1]:
            watch.say(f"not used, since it is not complete: {unfinished}")
    for line in _first_lines(config, course, stand, opened, world, [f"kernels: {kernels}", *table_lines(table)]):
        watch.say(line)
    run = Run(
        config=config,
        output=output,
        world=world,
        sets=opened.sets,
        course=course,
        learner=learner,
        checkpointed=initial.checkpointed,
        memory=memory,
        eval_set=_eval_set(opened),
        measure=measure,
    )
    return run, state


def prepare(
    config: TrainConfig, model: TrainModel, world: World, masters: Collection[str], *, backend: str | None
) -> None:
    """Compile, offload and shard a model of the meta device, in the only order that works.

    masters: the parameters that are kept in fp32. backend: what compiles blocks; None leaves them as they are.
    """
    dtype, parallel = compute_dtype(config.model.precision, world.device), config.parallel
    keep_in(model, dtype, masters)
    if backend:
        compile_blocks(blocks(model), backend)
    if config.memory.offload_bytes:
        room = pinned_room(config.memory.offload_bytes, world.device)
        offload_blocks(model, blocks(model), room, copy_on_stream(world.device), LEAST_BYTES)
    shard_model(model, blocks(model), world, dtype, parallel.reshard, parallel.offload)


def _filled(
    config: TrainConfig, model: TrainModel, world: World, initial: Initial, checkpoint: Path | None, watch: Watch
) -> torch.optim.Optimizer:
    """Give the model memory and values, the values of the checkpoint last; returns its optimizer, filled too."""
    materialize(model, world.device, config.parallel.offload)
    optimizer = make_optimizer(model, config.optim)
    watch.begin("reading the weights" if checkpoint or config.model.init != "random" else "drawing the weights")
    fill_initial(initial, model, config.seed)
    if checkpoint:
        load_checkpoint(checkpoint, tensors_of(model, optimizer, initial.checkpointed), verified=True)
    return optimizer


def _eval_set(opened: Opened) -> EvalSet | None:
    if opened.evaluated is None or opened.eval_recipe is None:
        return None
    return EvalSet(
        dataset=opened.evaluated.datasets[0], sidecar=opened.evaluated.sidecars[0], recipe=opened.eval_recipe
    )


def _first_lines(
    config: TrainConfig, course: Course, stand: Stand, opened: Opened, world: World, what: Sequence[str]
) -> Iterator[str]:
    """What a person should know before the first step. what: lines on kernels and on what is trained."""
    state, model = stand.state, opened.model
    yield f"resumed from {stand.checkpoint} at step {state.step}" if stand.checkpoint else "started at step 0"
    yield from changes(stand.stored.config, state.config) if stand.stored else ()
    yield from what
    if config.optim.name == "muon":
        yield muon_line(model)
    yield from window_remarks(config.profile, window_of(config.profile, state.step, course.steps))
    yield from likely_mistakes(config.optim, model, course.steps)
    yield from remarks(config, course.order, course.phase, world.data_size, course.steps, state)
    for loss, recipe in (("loss", opened.recipe), ("evaluation's loss", opened.eval_recipe)):
        if recipe and recipe.by == "set":
            sources = sum(len(set_recipe.sources) for set_recipe in recipe.sets)
            yield f"the {loss} is not logged by source: the shards have {sources:,}, more than {MOST_SOURCES}"
    if world.device.type == "cuda" and course.peak is None:
        name = torch.cuda.get_device_name(world.device)
        yield f"mfu is not logged: the peak of {name!r} is not known; open an issue with its data sheet"


def _measure(config: TrainConfig, evaluated: Sets | None) -> Measure | None:
    metric = config.metric_for_best_model
    if metric is None:
        return None
    shards = evaluated.datasets[0].index_hash if evaluated and metric == "eval_loss" else ""
    loss_weight = config.loss_weight if metric == "loss" else ""
    return Measure(metric=metric, greater=config.greater_is_better, shards=shards, loss_weight=loss_weight)


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """A TrainError where the block cannot write into the output folder."""
    try:
        yield
    except OSError as error:
        reason = no_room(str(error), output, _FILES_BYTES) or f"{error.strerror}; make room, or choose another output"
        raise TrainError(f"{output} cannot be written: {reason}") from error
