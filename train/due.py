"""When a run evaluates next, and what it then reads."""

from lmms.configs.manifest import Dataset
from lmms.configs.train import TrainConfig
from lmms.train.passes import Evaluated
from lmms.train.start import Run


def next_evaluation(config: TrainConfig, step: int, steps: int) -> int:
    """The first step from this one on, of `steps`, that is followed by an evaluation; of a run that has evaluations.

    They come every so many steps, at the end, and before each checkpoint that is judged by them. One that a signal asks
    for is not foreseen.
    """
    every = [config.eval.every_steps] if config.eval else []
    if config.metric_for_best_model == "eval_loss":
        every.append(config.save_steps)
    return min(steps, *(-(-step // number) * number for number in every)) if every else steps


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
    return Evaluated(shards=shards, next_step=lambda step: next_evaluation(run.config, step, run.steps))
