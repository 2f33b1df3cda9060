"""When a run evaluates next, and what it then reads."""

from lmms.configs.manifest import Dataset
from lmms.train.passes import Evaluated
from lmms.train.start import Run


def next_evaluation(run: Run, step: int) -> int:
    """The first step from this one on that is followed by an evaluation, in a run that has evaluations.

    They come every so many steps, at the end, and before each checkpoint that is judged by them. One before a
    checkpoint that a signal asks for is not foreseen.
    """
    every = [run.config.eval.every_steps] if run.config.eval else []
    if run.measure is not None and run.measure.metric == "eval_loss":
        every.append(run.config.save_steps)
    return min([run.steps, *(-(-step // steps) * steps for steps in every)])


def all_datasets(run: Run) -> tuple[Dataset, ...]:
    """Those that are trained on, then those of the evaluation."""
    return (*run.sets.datasets, *(run.evaluated.datasets if run.evaluated else ()))


def evaluated_shards(run: Run) -> Evaluated | None:
    """What the evaluations read, by its number among all_datasets."""
    if run.evaluated is None:
        return None
    first = len(run.sets.datasets)
    shards = tuple(
        (first + k, shard) for k, one in enumerate(run.evaluated.datasets) for shard in range(len(one.shards))
    )
    return Evaluated(shards=shards, next_step=lambda step: next_evaluation(run, step))
