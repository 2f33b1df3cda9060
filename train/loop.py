"""The loop of a run: step, evaluate, log, save."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from functools import partial

from lmms.configs.errors import TrainError
from lmms.train.batch.batch import Batch
from lmms.train.batch.loader import Loading
from lmms.train.checkpoint.keep import Keep, better
from lmms.train.checkpoint.read import tensors_of
from lmms.train.checkpoint.state import TrainerState
from lmms.train.checkpoint.write import Saver, saving
from lmms.train.data.steps import StepPlan
from lmms.train.due import due_after
from lmms.train.evaluation import Evaluation, evaluate
from lmms.train.feeder import feed
from lmms.train.optim.schedule import lr_share
from lmms.train.plan.out_of_memory import explaining_out_of_memory, in_step
from lmms.train.setup import Run
from lmms.train.step import StepResult, seed_step, take_step
from lmms.train.step_log import TakenStep, step_log
from lmms.train.watch.metrics import StepLog, alarmed_parts, append_metrics, count_zero_steps, peak_memory
from lmms.train.watch.profile import profiling, window_of
from lmms.train.watch.watch import Watch


def take_steps(run: Run, state: TrainerState, watch: Watch) -> TrainerState:
    """Step, evaluate, log, save: to the end, or until a signal asks to stop. Returns the last state, which is saved."""
    config, course, model = run.config, run.course, run.learner.model
    with ExitStack() as opened:
        saver = opened.enter_context(_saving(run, state.step, watch))
        window = window_of(config.profile, state.step, course.steps)
        profile = opened.enter_context(profiling(config.profile, run.output, run.world, model, window, watch))
        watch = replace(watch, mark=profile.marks)
        if state.step < course.steps:
            watch.begin(f"step {state.step + 1} of {course.steps}, its first packs are read")
        for plan, batches in opened.enter_context(closing(feed(run, state))):
            moment = partial(in_step, plan, profile.marks)
            with profile.step(plan.step), explaining_out_of_memory(run.memory, moment, watch):
                before = state
                state, taken = _step(run, before, plan, batches, watch)
                due = due_after(config, course.steps, before, state, taken.result)
                evaluation = _evaluate(run, plan, watch) if due.evaluation else None
                watch.mark("after")
                log = step_log(course, taken, state.skipped, evaluation, profiled=plan.step in profile.slowed)
                _log(run, log, watch, always=bool(evaluation) or due.failure)
                if due.failure:
                    raise TrainError(_with_advice(run, taken, state.skipped))
                # SIGTERM ends an evaluation too: what was trained before it has to be saved in time.
                stop = taken.result.stop or (due.evaluation and evaluation is None)
                saver.check()
                if due.save or stop:
                    state = _save(run, state, log, saver, watch)
            if stop and plan.step < course.steps:
                watch.say(f"stopped by SIGTERM after step {plan.step}; the same command goes on from there")
                break
    return state


def _step(
    run: Run, state: TrainerState, plan: StepPlan, batches: Iterator[Batch], watch: Watch
) -> tuple[TrainerState, TakenStep]:
    """Take a step, and say what a person should know of it."""
    config = run.config
    began = time.perf_counter()
    seed_step(config.seed, plan.step, run.world.rank)
    share = lr_share(plan.step, config.optim, run.course.steps)
    result = take_step(run.learner, plan, batches, share, watch)
    seconds = time.perf_counter() - began
    after = _next_state(state, plan, result)
    alarms = alarmed_parts(state.zero_steps, after.zero_steps)
    memory = peak_memory(run.world.device)
    taken = TakenStep(plan=plan, result=result, lr_share=share, seconds=seconds, memory=memory, alarms=alarms)
    if result.fault and after.skipped <= config.max_skipped:
        watch.say(f"ALARM: {_with_advice(run, taken, after.skipped)}")
    for sentence in result.masked:
        watch.say(f"masked: {sentence}")
    for part in alarms:
        count = after.zero_steps[part]
        watch.say(f"ALARM: {part} is trained, but its gradient was 0 for {count} steps that reach it")
    return after, taken


def _next_state(state: TrainerState, plan: StepPlan, result: StepResult) -> TrainerState:
    """The state after a step. The position moves here, after the update: packs only read ahead are not in it."""
    state = replace(state, step=plan.step, position=plan.position + len(plan.packs))
    if result.fault:
        return replace(state, skipped=state.skipped + 1)
    reads = {"vision": any(plan.has_images), "audio": any(plan.has_sounds)}
    reached = {part: reads.get(part, part == "llm" or any(reads.values())) for part in result.part_norms}
    zero_steps = count_zero_steps(state.zero_steps, result.part_norms, reached)
    return replace(state, zero_steps=zero_steps, skipped=0)


def _evaluate(run: Run, plan: StepPlan, watch: Watch) -> Evaluation | None:
    """An evaluation; None if SIGTERM came before its end."""
    assert run.eval_set
    watch.begin(f"evaluation after step {plan.step}")
    watch.mark("evaluation/forward")
    loading = Loading(run.config.data.micro_packs, run.config.data.workers, run.config.stall_s)
    return evaluate(run.learner.model, run.eval_set, run.world, loading, watch)


def _log(run: Run, log: StepLog, watch: Watch, *, always: bool) -> None:
    """Write the step into metrics.jsonl, and tell the listeners every log_steps, or when something happened."""
    if run.world.is_main:
        append_metrics(run.output, log)
    if always or log.alarms or log.step == log.steps or log.step % run.config.log_steps == 0:
        watch.say(log)


def _saving(run: Run, step: int, watch: Watch) -> AbstractContextManager[Saver]:
    config = run.config
    return saving(
        run.output,
        run.world,
        Keep(limit=config.save_total_limit, every=config.save_keep_every),
        step,
        asynchronous=config.save_async,
        grace_s=config.grace_s,
        report=watch.say,
    )


def _save(run: Run, state: TrainerState, log: StepLog, saver: Saver, watch: Watch) -> TrainerState:
    """Save the state, and whether its step is the best step so far. Returns the state that was saved."""
    watch.beat(f"step {state.step}, its checkpoint")
    # A checkpoint has all that a SIGUSR1 before the save can have meant.
    watch.asked.save = 0
    if run.measure:
        value = log.loss if run.measure.metric == "loss" else log.eval_loss
        state = replace(state, best=better(state.best, state.step, run.measure, value))
    saver.save(state, tensors_of(run.learner.model, run.learner.optimizer, run.checkpointed))
    return state


def _with_advice(run: Run, taken: TakenStep, skipped: int) -> str:
    """What a person needs to know of the last of `skipped` steps in a row that were not finite."""
    most = run.config.max_skipped
    counted = f"skipped, {skipped} in a row of at most {most}" if skipped <= most else f"max_skipped is {most}"
    return (
        f"{taken.result.fault}; {counted}; `lmms inspect step {run.output} {taken.plan.step}` names its records,"
        " `lmms inspect shard DIR --pack I` shows a pack; if it goes on, lower optim.lr"
    )
