"""What a step reports, metrics.jsonl, and the alarm for a trained part that gets no gradient."""

import json
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms.configs.by_part import Part
from lmms.configs.errors import TrainError
from lmms.configs.files import write_whole
from lmms.configs.nested import finite
from lmms.configs.room import why_not

if TYPE_CHECKING:
    import torch

METRICS_NAME = "metrics.jsonl"

ZERO_STEPS = 20
"""Steps in a row with gradient norm 0 that raise the alarm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SetLog:
    """One set of a mixture in one step."""

    loss: float | None
    """StepLog.loss of this set's targets alone; None in a step without targets of this set."""
    share: float
    """Share of this set in the weight that the step's targets have in the loss."""
    epoch: float
    """Passes over this set so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLog:
    """One optimizer step: a line of metrics.jsonl and of the log. The gradient norms are the norms before clipping."""

    step: int
    """Counted from 1."""
    steps: int
    """Steps of the whole run."""
    loss: float
    """Sum of weighted cross entropy (natural log) over the targets, per unit of their weight: see loss_weight."""
    lr: float
    """The default learning rate: of what optim.lr does not name."""
    grad_norm: float
    """L2 norm of all gradients."""
    grad_norms: dict[Part, float | None]
    """L2 norm of each part's gradients; 0 in a step that does not reach the part, None where it is not trained."""
    tokens: int
    """Tokens of the step, over all ranks: target, prompt, visual and sound tokens."""
    target_tokens: int
    """Tokens that are predicted."""
    prompt_tokens: int
    """Tokens of text that is read and not predicted."""
    visual_tokens: int
    """Placeholders of images, a token for each merged patch."""
    padding_tokens: int
    """Tokens computed for nothing, not in `tokens`: packs repeated where ranks do not divide a step, batches padded."""
    seconds: float
    """Time of the step: waiting for data, all passes, the update. Not its evaluation and checkpoint."""
    tokens_per_s: float
    """tokens / seconds; so are the next four."""
    target_tokens_per_s: float
    """Predicted tokens."""
    prompt_tokens_per_s: float
    """Tokens of text that is read."""
    visual_tokens_per_s: float
    """Placeholders of images."""
    padding_tokens_per_s: float
    """Tokens computed for nothing."""
    flops: float
    """Floating-point operations that the model needs for the step, strictly counted: see flops.model_cost."""
    mfu: float | None
    """Strict: flops / (seconds x ranks x dense bf16 peak by the data sheet). None where no peak is known."""
    busy_mfu: float | None
    """mfu with the time spent waiting for data taken out of the seconds."""
    data_wait: float
    """Share of the step's time in which a rank waited for data, averaged over the ranks."""
    memory: int
    """Bytes at the peak so far: of the GPU of rank 0, or resident where there is no GPU."""
    epoch: float
    """Passes over the shards so far; 1.5 is in the middle of the second."""
    position: int
    """Packs trained so far, over all epochs."""
    digest: str
    """Digest of the packs of the step, as they were read: see sets.packs_digest. 16 hexadecimal digits."""
    masked: int
    """Conversations of the step that were trained with weight 0 since an image or sound failed (on_bad_media: mask)."""
    skipped: int
    """Steps in a row, up to this step, that left the weights as they were, since loss or gradients are not finite."""
    time: float
    """Seconds since 1970."""
    resumed_from: int
    """Step of the checkpoint from which the process of this step went on; 0 in a process that started at step 0."""
    sound_tokens: int | None = None
    """Placeholders of sounds. None for a model that hears nothing; so is the next."""
    sound_tokens_per_s: float | None = None
    """Placeholders of sounds."""
    profiled: bool = False
    """Whether a profiler slowed this step or warmed up in it: rates and MFU are lower than they are without."""
    alarms: tuple[str, ...] = field(default=())
    """Trained parts that got no gradient for ZERO_STEPS steps, or for a multiple of ZERO_STEPS."""
    sets: dict[str, SetLog] = field(default_factory=dict)
    """Sets of a mixture, each by a short name of its place: loss, share, epoch. Empty where a run has one set."""
    loss_by_source: dict[str, float] = field(default_factory=dict)
    """loss of each source with targets in the step, by its short name. Empty with one source, or more than 64."""
    eval_loss: float | None = None
    """Loss after this step on eval.shards, by token whatever loss_weight is; None in a step without evaluation."""
    eval_loss_by_source: dict[str, float] = field(default_factory=dict)
    """eval_loss of each source of eval.shards."""


def peak_memory(device: "torch.device") -> int:
    """Bytes at the peak so far: allocated on a GPU, or resident in this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def count_zero_steps(
    counts: Mapping[Part, int], norms: Mapping[Part, float], reached: Mapping[Part, bool]
) -> dict[Part, int]:
    """Steps in a row in which each trained part should have got a gradient and got none.

    A step without images does not reach vision, one without sounds not audio, one without either not aligner: such a
    step neither counts nor ends a count.
    """
    return {
        part: counts.get(part, 0) if not reached[part] else 0 if norm > 0 else counts.get(part, 0) + 1
        for part, norm in norms.items()
    }


def alarmed_parts(before: Mapping[Part, int], after: Mapping[Part, int]) -> tuple[Part, ...]:
    """The parts whose count has just reached a multiple of ZERO_STEPS."""
    return tuple(p for p, count in after.items() if count % ZERO_STEPS == 0 and count > before.get(p, 0))


def line_of(log: StepLog) -> dict[str, Any]:
    """The line of a step: its fields by name, in their order, with a key for the gradient norm of each part."""
    line: dict[str, Any] = {}
    for name, value in asdict(log).items():
        line |= {f"grad_norm_{part}": norm for part, norm in value.items()} if name == "grad_norms" else {name: value}
    return line


def metrics_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of the run in this output folder, by step; none without a file. A line without its end, which a process
    is writing or was killed in, is left out.

    TrainError for a file that cannot be read, and for a damaged line, with its number.
    """
    path = folder / METRICS_NAME
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            entry, last = json.loads(line), entries[-1]["step"] if entries else 0
            if type(entry["step"]) is not int or (entries and entry["step"] <= last):
                raise ValueError(f"step is {entry['step']!r}, expected a number above {last}")
        except (ValueError, KeyError, TypeError) as error:
            raise damaged_line(path, number, error) from error
        entries.append(entry)
    return entries


def damaged_line(path: Path, number: int, error: Exception) -> TrainError:
    """The error for a line of metrics.jsonl that is not one of `line_of`."""
    return TrainError(
        f"{path} is damaged in line {number} ({type(error).__name__}: {error}); take the line out, or move the file"
        " away, to go on"
    )


def _whole_lines(path: Path) -> list[bytes]:
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise TrainError(f"{path} cannot be read: {error.strerror}") from error
    return [line for line in lines if line.endswith(b"\n")]


def open_metrics(folder: Path, step: int) -> None:
    """Make metrics.jsonl hold the lines up to `step` and no others, so that a resumed run never holds a step twice.

    A line that a kill cut off goes too.
    """
    path = folder / METRICS_NAME
    lines = zip(_whole_lines(path), metrics_lines(folder), strict=True)
    write_whole(path, b"".join(line for line, entry in lines if entry["step"] <= step))


def append_metrics(folder: Path, log: StepLog) -> None:
    """Add the line of one step, written in one piece, so that a kill of this process leaves it whole.

    Numbers that are not finite are null, since JSON has no other word for them.
    """
    path, line = folder / METRICS_NAME, json.dumps(finite(line_of(log)), allow_nan=False).encode() + b"\n"
    left = line
    try:
        with path.open("ab", buffering=0) as file:
            # A full disk takes a part of a line, and says so when it is asked to take the rest.
            while left:
                left = left[file.write(left) :]
    except OSError as error:
        raise TrainError(f"{path} cannot be written: {why_not(error, folder, len(line))}") from error
