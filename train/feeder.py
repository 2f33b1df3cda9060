"""The plans of a run's steps, each with the batches of its passes: made ahead by loader processes, read ahead by the
cache of a node."""

from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from itertools import islice, tee

from lmms.train.batch.batch import Batch
from lmms.train.batch.loader import batches
from lmms.train.batch.transfer import ahead
from lmms.train.checkpoint.state import TrainerState
from lmms.train.data.prefetch import cache_keeper
from lmms.train.data.shards import PackReader
from lmms.train.data.steps import Progress, RankShare, StepPlan, plan_steps
from lmms.train.data.upcoming import Evaluated, upcoming_shards
from lmms.train.due import next_evaluation
from lmms.train.parallel.launched import launched
from lmms.train.setup import Run


def feed(run: Run, state: TrainerState) -> Generator[tuple[StepPlan, Iterator[Batch]], None, None]:
    """Each step after `state` to the end of the run: its plan, and an iterator that gives its batches on the device.

    All batches of a step have to be taken before the next step is asked for. Closing the generator ends the loader.
    """
    data, world, sets = run.config.data, run.world, run.sets
    datasets = (*sets.datasets, *((run.eval_set.dataset,) if run.eval_set else ()))
    # One process of a node fills the node's cache.
    fills_cache = launched().local_rank == 0 and any(dataset.cache for dataset in datasets)
    every = plan_steps(
        run.course.order,
        sets,
        RankShare(world.data_rank, world.data_size, data.micro_packs),
        Progress(state.step, state.position),
        padded_to=run.course.recipe.shapes.tokens if run.course.recipe.shapes else None,
    )
    plans, coming = tee(islice(every, max(run.course.steps - state.step, 0)))
    requests = (request for plan in coming for request in plan.passes)
    with ExitStack() as opened:
        upcoming = upcoming_shards(run.course.order, _evaluated(run))
        want = opened.enter_context(cache_keeper(datasets)) if fills_cache else None
        loader = batches(PackReader(datasets), run.course.recipe, requests, data.workers, run.config.stall_s)
        on_device = opened.enter_context(closing(ahead(opened.enter_context(closing(loader)), world.device)))
        for plan in plans:
            if want:
                want(upcoming(plan.step, plan.position))
            yield plan, on_device


def _evaluated(run: Run) -> Evaluated | None:
    """What the evaluations read: the data set after the data sets of the training."""
    if run.eval_set is None:
        return None
    number, shards = len(run.sets.datasets), len(run.eval_set.dataset.shards)
    return Evaluated(
        shards=tuple((number, shard) for shard in range(shards)),
        next_step=lambda step: next_evaluation(run.config, run.course.steps, step),
    )
