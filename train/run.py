"""`lmms train`, from the settings to the last checkpoint, on one screen."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from itertools import islice, tee
from pathlib import Path

from lmms.configs.errors import TrainError
from lmms.configs.settings.train import TrainConfig
from lmms.train.batch.batch import Batch
from lmms.train.batch.loader import batches
from lmms.train.batch.transfer import ahead
from lmms.train.checkpoint.keep import Keep, better
from lmms.train.checkpoint.read import TrainerState, tensors_of
from lmms.train.checkpoint.resume import locked
from lmms.train.checkpoint.write import Saver, saving
from lmms.train.data.prefetch import cache_keeper
from lmms.train.data.shards import PackReader
from lmms.train.data.steps import Progress, RankShare, StepPlan, plan_steps
from lmms.train.data.upcoming import upcoming_shards
from lmms.train.evaluate import Evaluation, all_datasets, evaluate, evaluated_shards, next_evaluation
from lmms.train.model.deterministic import deterministic
from lmms.train.optim.schedule import lr_share
from lmms.train.parallel.launched import launched
from lmms.train.parallel.world import on_main, start_world, stop_world
from lmms.train.plan.out_of_memory import explaining_out_of_memory, in_step
from lmms.train.start import Run, start
from lmms.train.step import StepResult, seed_step, take_step
from lmms.train.step_log import step_log
from lmms.train.watch.boards import boards, check_boards
from lmms.train.watch.metrics import StepLog, alarmed_parts, append_metrics, count_zero_steps, peak_memory
from lmms.train.watch.profile import Profile, profiling, window_of
from lmms.train.watch.signals import Asked, signals
from lmms.train.watch.watchdog import watchdog

Report = Callable[[StepLog | str], None]
"""Called on rank 0: with each logged step, and with each line that a person should read."""

Beat = Callable[[str], None]


def train(config: TrainConfig, report: Report) -> bool:
    """Train as one of the ranks that the environment announces (RANK, WORLD_SIZE, ...), or alone without it.

    Returns False where SIGTERM stopped the run before its last step. Raises the classes of configs/errors.py. Writes
    checkpoints, metrics.jsonl, phases.json and config.yaml into config.output.
    """
    output = Path(config.output).expanduser()
    with ExitStack() as first:
        # Before the other ranks are waited for, who may never come.
        asked = first.enter_context(signals(config.grace_s))
        first.enter_context(deterministic(config))
        beat = first.enter_context(watchdog(config.stall_s, launched().rank))
        parallel = config.parallel
        world = start_world(config.device, config.stall_s, parallel.sequence, parallel.replicate, parallel.offload)
        tell = report if world.is_main else lambda event: None
        try:
            with ExitStack() as held:
                on_main(world, lambda: held.enter_context(locked(output)))
                on_main(world, lambda: check_boards(config.log))
                run, state = start(config, output, world, tell, beat)
                tell = held.enter_context(boards(config, output, world, state.step, tell))
                last = _take_steps(run, state, tell, asked, beat)
        except BaseException:
            # With others in the group, leaving it could wait for them, who wait for this one: the launcher ends them.
            if world.size == 1:
                stop_world()
            raise
        stop_world()
    return last.step >= run.steps


def _take_steps(run: Run, state: TrainerState, report: Report, asked: Asked, beat: Beat) -> TrainerState:
    """Train to the end, or until a signal asks to stop. Returns the state there, which is saved."""
    config, world, data = run.config, run.world, run.config.data
    keep = Keep(limit=config.save_total_limit, every=config.save_keep_every)
    datasets = all_datasets(run)
    # One process of a node fills its cache.
    fills_cache = launched().local_rank == 0 and any(dataset.cache for dataset in datasets)
    every = plan_steps(
        run.order,
        run.sets,
        RankShare(world.data_rank, world.data_size, data.micro_packs),
        Progress(state.step, state.position),
        padded_to=run.recipe.shapes.tokens if run.recipe.shapes else None,
    )
    plans, coming = tee(islice(every, max(run.steps - state.step, 0)))
    requests = (request for plan in coming for request in plan.passes)
    with ExitStack() as held:
        saver = held.enter_context(
            saving(
                run.output,
                world,
                keep,
                state.step,
                asynchronous=config.save_async,
                grace_s=config.grace_s,
                report=report,
            )
        )
        upcoming = upcoming_shards(run.order, evaluated_shards(run))
        want = held.enter_context(cache_keeper(datasets)) if fills_cache else None
        made = batches(PackReader(datasets), run.recipe, requests, data.workers, config.stall_s)
        arriving = held.enter_context(closing(ahead(held.enter_context(closing(made)), world.device)))
        window = window_of(config.profile, state.step, run.steps)
        profile = held.enter_context(profiling(config.profile, run.output, world, run.model, window, report, beat))
        for plan in plans:
            if want:
                want(upcoming(plan.step, plan.position))
            moment = partial(in_step, plan, profile.marks)
            explaining = explaining_out_of_memory(config, run.output, world, run.opened, run.held, moment, beat)
            with profile.step(plan.step), explaining:
                state, stop = _take_step(run, state, plan, arriving, saver, profile, report, asked, beat)
            if stop and plan.step < run.steps:
                report(f"stopped by SIGTERM after step {plan.step}; the same command goes on from there")
                break
    return state


def _take_step(
    run: Run,
    state: TrainerState,
    plan: StepPlan,
    arriving: Iterator[Batch],
    saver: Saver,
    profile: Profile,
    report: Report,
    asked: Asked,
    beat: Beat,
) -> tuple[TrainerState, bool]:
    """One step with all that is due after it: alarms, evaluation, the log, a checkpoint. Whether to stop then, too."""
    config, is_last = run.config, plan.step == run.steps
    began = time.perf_counter()
    seed_step(config.seed, plan.step, run.world.rank)
    share = lr_share(plan.step, config.optim, run.steps)
    result = take_step(
        *(run.model, run.optimizer, run.parts, plan, arriving, run.world, share, config.optim.max_grad_norm),
        *(asked, beat, profile.marks),
    )
    seconds = time.perf_counter() - began
    last, state = state, _next_state(state, plan, result)
    fatal = state.skipped > config.max_skipped
    if state.skipped and not fatal:
        report(f"ALARM: {_with_advice(run, plan, result, state.skipped)}")
    alarms = alarmed_parts(last.zero_steps, state.zero_steps)
    for sentence in result.masked:
        report(f"masked: {sentence}")
    for part in alarms:
        report(f"ALARM: {part} is trained, but its gradient was 0 for {state.zero_steps[part]} steps that reach it")
    asked_for = is_last or result.stop or result.save
    saves = not fatal and (asked_for or _save_is_due(plan.step, last.skipped, state.skipped, config.save_steps))
    due = run.evaluated is not None and not (result.stop or fatal) and _evaluates(run, plan.step, saves)
    if due:
        profile.marks("evaluation/forward")
    evaluation = _evaluation(run, plan, asked, beat) if due else None
    profile.marks("after")
    # SIGTERM ends an evaluation too: what was trained before it has to be saved in time.
    stop = result.stop or (due and evaluation is None)
    saves |= stop
    log = step_log(
        plan,
        result,
        run.order,
        run.phase,
        run.recipe,
        evaluation,
        steps=run.steps,
        lr=share * config.optim.lr["default"],
        seconds=seconds,
        memory=peak_memory(run.world.device),
        peak=run.peak,
        resumed_from=run.resumed_from,
        skipped=state.skipped,
        profiled=plan.step in profile.slowed,
        alarms=alarms,
    )
    if run.world.is_main:
        append_metrics(run.output, log)
    if plan.step % config.log_steps == 0 or is_last or alarms or evaluation or fatal:
        report(log)
    if fatal:
        raise TrainError(_with_advice(run, plan, result, state.skipped))
    saver.check()
    if saves:
        beat(f"step {plan.step}, its checkpoint")
        if result.save:
            asked.save = 0
        if run.measure:
            value = log.loss if run.measure.metric == "loss" else log.eval_loss
            state = replace(state, best=better(state.best, plan.step, run.measure, value))
        saver.save(state, tensors_of(run.model, run.optimizer, run.held))
    return state, stop


def _save_is_due(step: int, skipped_before: int, skipped: int, save_steps: int) -> bool:
    """Whether save_steps asks for a checkpoint.

    Not of a skipped step, whose weights may be what is wrong, and which could be the last one kept: the next good step
    then makes up for it.
    """
    return not skipped and step // save_steps > (step - skipped_before - 1) // save_steps


def _evaluates(run: Run, step: int, saves: bool) -> bool:
    """Whether an evaluation is due: see next_evaluation, and before any other checkpoint that is judged by it."""
    judged = saves and run.measure is not None and run.measure.metric == "eval_loss"
    return judged or next_evaluation(run, step) == step


def _evaluation(run: Run, plan: StepPlan, asked: Asked, beat: Beat) -> Evaluation | None:
    """An evaluation; None if SIGTERM came before its end."""
    config = run.config
    assert run.evaluated is not None
    assert run.eval_recipe is not None
    return evaluate(
        run.model,
        run.evaluated.datasets[0],
        run.evaluated.sidecars[0],
        run.eval_recipe,
        run.world,
        micro_packs=config.data.micro_packs,
        workers=config.data.workers,
        stall_s=config.stall_s,
        asked=asked,
        beat=beat,
    )


def _next_state(state: TrainerState, plan: StepPlan, result: StepResult) -> TrainerState:
    """The state after a step. The position moves here, after the update: packs only read ahead are not in it."""
    state = replace(state, step=plan.step, position=plan.position + len(plan.packs))
    if result.fault:
        return replace(state, skipped=state.skipped + 1)
    reached = {part: part == "llm" or any(plan.has_images) for part in result.part_norms}
    zero_steps = count_zero_steps(state.zero_steps, result.part_norms, reached)
    return replace(state, zero_steps=zero_steps, skipped=0)


def _with_advice(run: Run, plan: StepPlan, result: StepResult, skipped: int) -> str:
    """What a person needs to know of the last of so many steps in a row that were not finite."""
    most = run.config.max_skipped
    done = f"skipped, {skipped} in a row of at most {most}" if skipped <= most else f"max_skipped is {most}"
    return (
        f"{result.fault}; {done}; `lmms inspect step {run.output} {plan.step}` names its records, `lmms inspect shard"
        " DIR --pack I` shows a pack; if it goes on, lower optim.lr"
    )
