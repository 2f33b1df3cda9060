"""order -> batch -> step -> checkpoint -> export. Reads what prep wrote, through configs only."""

from typing import TYPE_CHECKING

from lmms.configs.lazy import lazy_names

if TYPE_CHECKING:
    from lmms.train.batch.batch import Batch
    from lmms.train.batch.loader import Loading
    from lmms.train.checkpoint.export import export
    from lmms.train.checkpoint.state import TrainerState
    from lmms.train.data.shards import PackReader
    from lmms.train.data.steps import StepPlan
    from lmms.train.data.verify import verify
    from lmms.train.evaluation import EvalSet, Evaluation, evaluate
    from lmms.train.feeder import feed
    from lmms.train.model.forward import TrainModel
    from lmms.train.optim.schedule import lr_share
    from lmms.train.parallel.world import World, start_world, stop_world
    from lmms.train.plain_loop import PackDataset, Step, load_model, open_shards
    from lmms.train.plan.dry_run import dry_run
    from lmms.train.plan.dry_run_result import DryRun
    from lmms.train.plan.preview import Preview, preview
    from lmms.train.run import train
    from lmms.train.setup import Run, start
    from lmms.train.step import Learner, StepResult, take_step
    from lmms.train.watch.history import History, read_history
    from lmms.train.watch.metrics import StepLog
    from lmms.train.watch.records import StepRecords, records_of
    from lmms.train.watch.watch import Watch, unwatched

__all__ = [
    "Batch",
    "DryRun",
    "EvalSet",
    "Evaluation",
    "History",
    "Learner",
    "Loading",
    "PackDataset",
    "PackReader",
    "Preview",
    "Run",
    "Step",
    "StepLog",
    "StepPlan",
    "StepRecords",
    "StepResult",
    "TrainModel",
    "TrainerState",
    "Watch",
    "World",
    "dry_run",
    "evaluate",
    "export",
    "feed",
    "load_model",
    "lr_share",
    "open_shards",
    "preview",
    "read_history",
    "records_of",
    "start",
    "start_world",
    "stop_world",
    "take_step",
    "train",
    "unwatched",
    "verify",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "train": "lmms.train.run",
        "dry_run": "lmms.train.plan.dry_run",
        "DryRun": "lmms.train.plan.dry_run_result",
        **dict.fromkeys(("Preview", "preview"), "lmms.train.plan.preview"),
        "export": "lmms.train.checkpoint.export",
        "verify": "lmms.train.data.verify",
        **dict.fromkeys(("History", "read_history"), "lmms.train.watch.history"),
        **dict.fromkeys(("StepRecords", "records_of"), "lmms.train.watch.records"),
        "StepLog": "lmms.train.watch.metrics",
        "PackReader": "lmms.train.data.shards",
        # For a user's loop, on one process.
        **dict.fromkeys(("PackDataset", "Step", "load_model", "open_shards"), "lmms.train.plain_loop"),
        "Batch": "lmms.train.batch.batch",
        "TrainModel": "lmms.train.model.forward",
        "StepPlan": "lmms.train.data.steps",
        # For a user's loop, on any ranks, with checkpoints and settings as `train` has them.
        **dict.fromkeys(("World", "start_world", "stop_world"), "lmms.train.parallel.world"),
        **dict.fromkeys(("Watch", "unwatched"), "lmms.train.watch.watch"),
        **dict.fromkeys(("Run", "start"), "lmms.train.setup"),
        "TrainerState": "lmms.train.checkpoint.state",
        "lr_share": "lmms.train.optim.schedule",
        "Loading": "lmms.train.batch.loader",
        "feed": "lmms.train.feeder",
        **dict.fromkeys(("Learner", "StepResult", "take_step"), "lmms.train.step"),
        **dict.fromkeys(("EvalSet", "Evaluation", "evaluate"), "lmms.train.evaluation"),
    },
)
