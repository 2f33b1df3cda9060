"""What is due after a step: an evaluation, a checkpoint, the end of the run."""

from dataclasses import dataclass

from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.state import TrainerState
from lmms.train.step import StepResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """What comes after a step, in this order. SIGTERM during the evaluation makes a checkpoint due as well."""

    evaluation: bool
    save: bool
    failure: bool
    """More steps in a row were not finite than max_skipped allows."""


def due_after(config: TrainConfig, steps: int, before: TrainerState, after: TrainerState, result: StepResult) -> Due:
    """What is due after the step that led from `before` to `after`, in a run of `steps` steps."""
    step = after.step
    failure = after.skipped > config.max_skipped
    asked = step == steps or result.stop or result.save
    save = not failure and (asked or _save_is_due(step, before.skipped, after.skipped, config.save_steps))
    judged = save and config.metric_for_best_model == "eval_loss"
    evaluation = config.eval is not None and (judged or next_evaluation(config, steps, step) == step)
    return Due(evaluation=evaluation and not (result.stop or failure), save=save, failure=failure)


def next_evaluation(config: TrainConfig, steps: int, step: int) -> int:
    """The first step that is followed by an evaluation, `step` or a later step, in a run of `steps` with evaluations.

    Evaluations come every eval.every_steps, at the end, and before each checkpoint that is judged by them. An
    evaluation before a checkpoint that a signal asks for is not foreseen.
    """
    every = [config.eval.every_steps] if config.eval else []
    if config.metric_for_best_model == "eval_loss":
        every.append(config.save_steps)
    return min([steps, *(-(-step // number) * number for number in every)])


def _save_is_due(step: int, skipped_before: int, skipped: int, save_steps: int) -> bool:
    """Whether save_steps asks for a checkpoint.

    Never after a skipped step, whose weights may be the fault, and whose checkpoint could be the last that is kept: the
    next good step is saved instead.
    """
    return not skipped and step // save_steps > (step - skipped_before - 1) // save_steps
