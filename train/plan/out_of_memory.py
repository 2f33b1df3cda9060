"""When a GPU's memory runs out: its contents, its snapshot, and the settings that would need less.

output/oom/step-00000012-rank-3.pickle    for pytorch.org/memory_viz; profile.oom_stacks adds who allocated what
output/oom/start-rank-3.pickle            before the first step
"""

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lmms.configs.errors import LmmsError, TrainError
from lmms.configs.files import beside
from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.read import list_checkpoints
from lmms.train.data.sets import Sets
from lmms.train.data.shards import Place
from lmms.train.data.steps import StepPlan
from lmms.train.parallel.world import World
from lmms.train.plan.advice import Advice, advise
from lmms.train.plan.cards import GIB
from lmms.train.plan.open import Opened
from lmms.train.watch.marks import Marks
from lmms.train.watch.watch import Watch

OOM_NAME = "oom"

_MUCH = 0.05
"""The least share of a card's memory that is worth a word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CardUse:
    """A card and the use of its memory, in bytes."""

    name: str
    memory: int
    free: int
    allocated: int
    """Bytes of this process's tensors."""
    reserved: int
    """Bytes that torch has in this process, tensors included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """The moment when memory ran out."""

    phrase: str
    name: str
    """Part of the snapshot's file name."""
    places: tuple[Place, ...] = ()
    """The packs of the pass; empty outside passes."""


BEFORE_STEPS = Moment(phrase="before the first step, making the model and its averages", name="start")


def in_step(plan: StepPlan, marks: Marks) -> Moment:
    """The current moment of a step."""
    first, _, inner = marks.path.partition("/")
    number = re.match(r"pass (\d+)", first)
    # Marks outside passes, in words.
    words = {"evaluation": "the evaluation after it", "after": "after it", "": "before its passes"}
    phase = f"{first} of {len(plan.passes)}, {inner.replace('/', ', ')}" if number else words.get(first, first)
    places = plan.passes[int(number[1]) - 1].places if number else ()
    return Moment(phrase=f"step {plan.step}, {phase}", name=f"step-{plan.step:08d}", places=places)


def card_use(device: torch.device) -> CardUse:
    """The current use of a GPU."""
    free, memory = torch.cuda.mem_get_info(device)
    return CardUse(
        name=torch.cuda.get_device_name(device),
        memory=memory,
        free=free,
        allocated=torch.cuda.memory_allocated(device),
        reserved=torch.cuda.memory_reserved(device),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MemoryContext:
    """The parts of a run from which advice on its memory is made."""

    config: TrainConfig
    output: Path
    world: World
    opened: Opened
    checkpointed: Collection[str]
    """The parameters that checkpoints hold and that are kept in fp32: see advise."""


@contextmanager
def explaining_out_of_memory(context: MemoryContext, moment: Callable[[], Moment], watch: Watch) -> Iterator[None]:
    """A context that turns torch's out-of-memory error into a TrainError which says what a person can do.

    moment: a call that tells when the error happened.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        rank, when, use = context.world.rank, moment(), card_use(context.world.device)
        watch.beat(f"{when.phrase}, out of memory, its snapshot")
        snapshot = _write_snapshot(context.output, f"{when.name}-rank-{rank}.pickle")
        watch.beat(f"{when.phrase}, out of memory, what would help")
        advice = _advice(context, when, use.memory)
        packs = f" with {_packs(context.opened.sets, when.places)}" if when.places else ""
        raise TrainError(
            f"rank {rank}, {when.phrase}: the GPU's memory ran out{packs}; {card_text(use, str(error))};"
            f" {snapshot}\n{advice}"
        ) from error


def _advice(context: MemoryContext, when: Moment, memory: int) -> str:
    config, ranks = context.config, context.world.size
    try:
        goes_on = config.resume not in ("auto", "never") or bool(list_checkpoints(context.output)[0])
        advice = advise(config, context.opened, ranks, context.checkpointed, memory, when.places, goes_on=goes_on)
        return advice_text(advice, memory)
    except (LmmsError, OSError, RuntimeError) as failed:
        # A failure here, of files or of torch, must not hide the first error.
        return f"what would help could not be reckoned ({failed}); `lmms train --dry-run` may"


def card_text(use: CardUse, said: str) -> str:
    """A sentence on the use of the card. said: torch's message, which has the bytes that were asked for."""
    asked = re.search(r"Tried to allocate ([\d.]+ \w+)", said)
    parts = [
        f"{use.name} has {_gib(use.memory)}: {_gib(use.allocated)} in tensors, {_gib(use.reserved)} reserved with them,"
        f" {_gib(use.free)} free" + (f", {asked[1]} asked for" if asked else "")
    ]
    unused, others = use.reserved - use.allocated, use.memory - use.free - use.reserved
    if unused > _MUCH * use.memory:
        parts.append(
            f"{_gib(unused)} are reserved in pieces that did not fit: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
            " may join them"
        )
    if others > _MUCH * use.memory:
        parts.append(f"{_gib(others)} are not torch's: libraries, or other processes, see nvidia-smi")
    return "; ".join(parts)


def advice_text(advice: Advice, memory: int) -> str:
    """The result of the dry run's arithmetic for a card of so many bytes, in words."""
    here = f"this pass {_gib(advice.here)}, " if advice.here else ""
    fits = " (fits: what is above took the rest)" if advice.heaviest <= memory else ""
    need = f"by the arithmetic of --dry-run a rank needs: {here}the heaviest pass {_gib(advice.heaviest)}{fits}"
    changes = ", ".join(
        f"with {proposal.change} {_gib(proposal.total)} ({'fits' if proposal.total <= memory else 'too much'}"
        f"{', but no checkpoint goes on with it' if proposal.from_start else ''})"
        for proposal in advice.proposals
    )
    return "; ".join([need, changes or "no setting needs less: build shorter packs", *advice.remarks])


def _packs(sets: Sets, places: tuple[Place, ...]) -> str:
    texts = []
    for place in places:
        sidecar = sets.sidecars[place.set]
        patches, heard = int(sidecar.patches[place.pack]), int(sidecar.sound_positions[place.pack])
        name = f"pack {place.pack}" + (f" of set {place.set}" if place.set else "")
        size = f"{int(sidecar.tokens[place.pack]):,} tokens" + (f", {patches:,} patches" if patches else "")
        size += f", {heard:,} positions of sounds" if heard else ""
        texts.append(f"{name} ({size})")
    return ", ".join(texts)


def _write_snapshot(output: Path, name: str) -> str:
    """Write the allocator's snapshot; returns a phrase that says where the file is, or why there is none."""
    path = output / OOM_NAME / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside(path) as part:
            torch.cuda.memory._dump_snapshot(str(part))  # type: ignore[no-untyped-call]
    except OSError as error:
        return f"its snapshot {path} cannot be written: {error.strerror}"
    return f"{path} opens in pytorch.org/memory_viz"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
