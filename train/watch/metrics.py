"""What a step reports, metrics.jsonl, and the alarm for a trained part that gets no gradient."""

import json
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lmms.configs.by_part import Part
from lmms.configs.errors import TrainError
from lmms.configs.files import write_whole
from lmms.configs.nested import finite

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
    grad_norm_llm: float | None
    """L2 norm of the language model's gradients. None where the part is frozen or not in the model."""
    grad_norm_vision: float | None
    """L2 norm of the vision tower's gradients; 0 in a step without images."""
    grad_norm_aligner: float | None
    """L2 norm of the gradients of the merger between both; 0 in a step without images."""
    tokens: int
    """Tokens of the step, over all ranks: target, prompt and visual tokens."""
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
    """Conversations of the step that were trained with weight 0 since an image failed (on_bad_media: mask)."""
    skipped: int
    """Steps in a row, up to this step, that left the weights as they were, since loss or gradients are not finite."""
    time: float
    """Seconds since 1970."""
    resumed_from: int
    """Step of the checkpoint from which the process of this step went on; 0 in a process that started at step 0."""
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

    A step without images does not reach vision and aligner: such a step neither counts nor ends a count.
    """
    return {
        part: counts.get(part, 0) if not reached[part] else 0 if norm > 0 else counts.get(part, 0) + 1
        for part, norm in norms.items()
    }


def alarmed_parts(before: Mapping[Part, int], after: Mapping[Part, int]) -> tuple[Part, ...]:
    """The parts whose count has just reached a multiple of ZERO_STEPS."""
    return tuple(p for p, count in after.items() if count % ZERO_STEPS == 0 and count > before.get(p, 0))


def open_metrics(folder: Path, step: int) -> None:
    """Make metrics.jsonl hold the lines up to `step` and no others, so that a resumed run never holds a step twice.

    A line that a kill cut off goes too.
    """
    path = folder / METRICS_NAME
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    try:
        kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainError(f"{path} is damaged ({type(error).__name__}: {error}); move it away to go on") from error
    write_whole(path, b"".join(kept))


def append_metrics(folder: Path, log: StepLog) -> None:
    """Add the line of one step, written in one piece, so that a kill of this process leaves it whole.

    Numbers that are not finite are null, since JSON has no other word for them.
    """
    path, line = folder / METRICS_NAME, json.dumps(finite(asdict(log)), allow_nan=False).encode() + b"\n"
    try:
        with path.open("ab", buffering=0) as file:
            written = file.write(line)
    except OSError as error:
        raise TrainError(f"{path} cannot be written: {error.strerror}") from error
    if written != len(line):
        raise TrainError(f"{path}: {written} of {len(line)} bytes were written; is the disk full?")
