"""Which checkpoints of a run are kept, and which is the best: best.json in its output folder.

{"checkpoint": "step-00000100", "step": 100, "value": 1.25, "metric": "eval_loss", "greater": false, "shards": "...",
 "loss_weight": ""}
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lmms.configs.errors import TrainError
from lmms.configs.files import PART_SUFFIX, write_whole
from lmms.configs.load import load_config
from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.files import CONFIG_NAME, fault_of, refuse_incomplete
from lmms.train.checkpoint.read import (
    checkpoint_name,
    list_checkpoints,
    step_folders,
)
from lmms.train.checkpoint.state import Best, Measure, best_to_dict

BEST_NAME = "best.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """Which checkpoints stay besides the best checkpoint."""

    limit: int | None = None
    """The number of newest checkpoints that stay; None: all stay."""
    every: int | None = None
    """Checkpoints stay whose step is a multiple of this number."""


def to_delete(steps: Iterable[int], keep: Keep, best: int | None) -> list[int]:
    """The steps, ascending, whose checkpoints are deleted: all but the newest `limit`, the multiples and the best."""
    older = sorted(steps)[: -keep.limit if keep.limit else 0]
    return [step for step in older if step != best and (keep.every is None or step % keep.every != 0)]


def delete_old(output: Path, keep: Keep, best: int | None) -> Iterator[str]:
    """Delete the complete checkpoints in this folder that `to_delete` names. Yields an alarm for each that stays.

    What cannot be deleted only takes room: the checkpoints that a run goes on from are there.
    """
    folders = step_folders(output)
    complete = set(list_checkpoints(output)[0])
    for step in to_delete((step for step, path in folders.items() if path in complete), keep, best):
        # Renamed first: a deletion that is cut off must not leave a folder that looks like a checkpoint.
        part = folders[step].with_name(folders[step].name + PART_SUFFIX)
        try:
            shutil.rmtree(folders[step].rename(part))
        except OSError as error:
            stays = part if part.exists() else folders[step]
            yield (
                f"ALARM: the old checkpoint {stays} could not be deleted ({error.strerror}), and takes up room; delete"
                " it by hand"
            )


def better(best: Best | None, step: int, measure: Measure, value: float | None) -> Best | None:
    """TrainerState.best after a checkpoint at `step`, where the metric has this value (None: was not measured).

    best: by the same measure. A value that only equals the best, or is not a finite number, changes nothing.
    """
    if value is None or not math.isfinite(value):
        return best
    if best is None or (value > best.value if measure.greater else value < best.value):
        return Best(step=step, value=value, measure=measure)
    return best


def write_best(output: Path, best: Best) -> None:
    """Write TrainerState.best as best.json, whole or not at all."""
    body = {"checkpoint": checkpoint_name(best.step), **best_to_dict(best)}
    write_whole(output / BEST_NAME, json.dumps(body, indent=1))


def best_checkpoint(output: Path) -> Path | None:
    """The checkpoint that best.json names, if there is one. TrainError if best.json or the checkpoint is damaged."""
    path = output / BEST_NAME
    try:
        step = json.loads(path.read_text(encoding="utf-8"))["step"]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, LookupError) as error:
        raise TrainError(f"{path} is damaged ({type(error).__name__}: {error}); name a checkpoint") from error
    folder = step_folders(output).get(step, output / checkpoint_name(step))
    if (fault := fault_of(folder)) is not None:
        raise TrainError(f"{path} names {folder.name}, which is not a complete checkpoint: {fault}; name another")
    return folder


def resumed_best(output: Path, best: Best | None, measure: Measure | None, say: Callable[[str], None]) -> Best | None:
    """TrainerState.best of a run that goes on in this folder, or starts (best is None); best.json is made to agree.

    A best checkpoint that is gone, damaged or the best by another measure is forgotten, and `say` tells so.
    """
    if best is not None:
        folder = output / checkpoint_name(best.step)
        fault = fault_of(folder)
        if best.measure != measure:
            now = asdict(measure) if measure else "nothing"
            fault = f"it was measured by {asdict(best.measure)}, this run measures {now}"
        if fault is not None:
            say(f"{folder.name} was the best by {best.measure.metric}, but is not any more: {fault}; the next one is")
            best = None
    if best is not None:
        write_best(output, best)
    else:
        (output / BEST_NAME).unlink(missing_ok=True)
    return best


def choose_checkpoint(folder: Path) -> tuple[Path, str]:
    """(checkpoint to export, the reason for the choice): the folder itself, or a checkpoint in a run's output folder.

    In an output folder it is the best checkpoint where the run has load_best_model_at_end, else the newest complete
    checkpoint. TrainError if there is no checkpoint, or if the best checkpoint is gone.
    """
    if not (folder / CONFIG_NAME).is_file():
        refuse_incomplete(folder)
        return folder, ""
    complete, _ = list_checkpoints(folder)
    if not complete:
        raise TrainError(f"{folder} is the folder of a run, but holds no complete checkpoint yet")
    if not load_config(TrainConfig, folder / CONFIG_NAME).load_best_model_at_end:
        return complete[-1], "the newest complete checkpoint of this run"
    if (best := best_checkpoint(folder)) is not None:
        return best, f"the best checkpoint of this run by {BEST_NAME}"
    return complete[-1], f"the newest complete checkpoint of this run, which has no {BEST_NAME} yet"
