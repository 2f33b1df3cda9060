"""`lmms train`, from the settings to what comes after the last checkpoint, on one screen."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.read import checkpoint_name
from lmms.train.checkpoint.resume import clear_leftovers, output_locked
from lmms.train.loop import take_steps
from lmms.train.model.deterministic import deterministic
from lmms.train.parallel.launched import launched
from lmms.train.parallel.world import start_world, stop_world
from lmms.train.plan.checks import check_boards
from lmms.train.setup import start
from lmms.train.watch.boards import boards
from lmms.train.watch.signals import signals
from lmms.train.watch.watch import Say, Watch
from lmms.train.watch.watchdog import watchdog


def train(config: TrainConfig, say: Say) -> bool:
    """Train as one of the ranks that the environment announces (RANK, WORLD_SIZE, ...), or else as the only rank.

    say: called on rank 0 with each logged step, and with each line that a person should read.
    Returns False where SIGTERM stopped the run before its last step. Raises an LmmsError. Writes checkpoints,
    metrics.jsonl, phases.json and config.yaml into config.output.
    """
    output = Path(config.output).expanduser()
    with ExitStack() as process:
        # Before waiting for the other ranks, which may never come.
        asked = process.enter_context(signals(config.grace_s))
        process.enter_context(deterministic(config))
        beat = process.enter_context(watchdog(config.stall_s, launched().rank))
        parallel = config.parallel
        world = start_world(config.device, config.stall_s, parallel.sequence, parallel.replicate, parallel.offload)
        watch = Watch(say=say if world.is_main else lambda event: None, beat=beat, asked=asked)
        try:
            with ExitStack() as opened:
                world.once(lambda: opened.enter_context(output_locked(output)))
                world.once(lambda: clear_leftovers(output, watch.say))
                world.once(lambda: check_boards(config.log))
                run, state = start(config, world, watch)
                tell = opened.enter_context(boards(config, output, world, state.step, watch.say))
                state = take_steps(run, state, replace(watch, say=tell))
        except BaseException:
            # With other ranks, leaving the group could wait for ranks that wait for this rank: the launcher ends them.
            if world.size == 1:
                stop_world()
            raise
        stop_world()
    if state.step >= run.course.steps:
        watch.say(_last_line(output, state.step))
    return state.step >= run.course.steps


def _last_line(output: Path, step: int) -> str:
    """What a finished run made, and what comes next."""
    saved = output / checkpoint_name(step)
    return (
        f"finished: step {step} is saved in {saved}; next: `lmms export {output} MODEL` makes a model folder of it,"
        f" `lmms inspect run {output}` draws its curves"
    )
