"""The memory and the length of a run before it starts: `lmms train --dry-run`. No GPU is needed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
from torch import Tensor

from lmms.configs.contract.model_folder import PREP_FILES, resolve_model
from lmms.configs.settings.memory import MemoryConfig, check_activations
from lmms.configs.settings.parallel import check_ranks
from lmms.configs.settings.train import TrainConfig
from lmms.train.batch.batch import Batch
from lmms.train.checkpoint.initial import plan_initial
from lmms.train.checkpoint.pretrained import check_pretrained
from lmms.train.checkpoint.resume import would_resume
from lmms.train.checkpoint.state import Base
from lmms.train.data.mixture import PERIOD
from lmms.train.data.order import Order
from lmms.train.data.phases import RunPhase, order_of
from lmms.train.plan.advice import figure_remarks, proposals_of
from lmms.train.plan.cards import Card
from lmms.train.plan.checks import check_output
from lmms.train.plan.dry_run_result import DryRun, Heaviest, Length
from lmms.train.plan.estimate import (
    cuda_dtype,
    heaviest,
    largest,
    memory_of,
    parameters_by_part,
    passes_of,
    staged_bytes,
    states_of,
    trace,
)
from lmms.train.plan.likely_mistakes import likely_mistakes
from lmms.train.plan.memory import States
from lmms.train.plan.open import expected_waiting, open_run, remarks
from lmms.train.plan.stand import stand_of
from lmms.train.watch.metrics import metrics_lines
from lmms.train.watch.profile import check_profile

_RATE_LINES = 100
"""The number of newest lines of metrics.jsonl whose median is a run's rate."""


def dry_run(config: TrainConfig, ranks: int, cards: Sequence[Card]) -> DryRun:
    """The memory and the length of a run on so many GPUs, for these cards. Reads the heaviest packs; writes nothing.

    Raises the errors of the run before its first step: for settings, shards, model, weights and checkpoints. Shapes are
    enough: a model folder without weights gives a remark, and no weights are fetched from a hub.
    """
    sequence = config.parallel.sequence
    check_ranks(sequence, config.parallel.replicate, ranks)
    device = "cpu" if config.device == "cpu" else "cuda"
    check_activations(config.memory.offload_bytes, device)
    folder = resolve_model(config.model.path, PREP_FILES)
    opened = open_run(replace(config, model=replace(config.model, path=str(folder))), lambda coming: None)
    output = Path(config.output).expanduser()
    check_output(output)
    checkpoint = would_resume(config.resume, output)
    stand = stand_of(config, opened.fresh, opened.phase, checkpoint)
    state, phases, steps = stand.state, stand.phases, stand.steps
    weightless = (
        config.model.init == "pretrained" and not config.model.init_from and not any(folder.glob("*.safetensors"))
    )
    base_of = _no_base if weightless else _same
    initial = plan_initial(config, folder, opened.model, base_of, checkpoint, lambda line: None)
    if initial.reads_base and initial.base.path:
        check_pretrained(opened.model.hf, Path(initial.base.path))
    check_profile(config.profile, device, ranks, state.step, steps)
    order = order_of(opened.sets, phases[-1])
    trained = {name for name, parameter in opened.model.named_parameters() if parameter.requires_grad}
    overlaid = set(initial.overlay.names.values()) if initial.overlay else initial.checkpointed - trained
    batches = heaviest(config, opened)
    traced = trace(config, opened, batches, overlaid)
    memory = memory_of(traced, ranks)
    states = states_of(traced, ranks)
    short = [card.memory for card in cards if largest(memory) > card.memory]
    return DryRun(
        model=str(opened.folder.path),
        parameters=parameters_by_part(opened.model, trained=False),
        trained=parameters_by_part(opened.model, trained=True),
        precision=str(cuda_dtype(config)).removeprefix("torch."),
        optimizer=config.optim.name,
        recompute=_recompute(config.memory),
        ranks=ranks,
        global_packs=order.global_packs,
        micro_packs=config.data.micro_packs,
        passes=passes_of(config, ranks),
        shards=sum(len(dataset.shards) for dataset in opened.sets.datasets),
        packs=len(order.costs),
        resumes=str(checkpoint) if checkpoint else None,
        heaviest=Heaviest(
            tokens=max(batch.input_ids.shape[1] for batch in batches),
            patches=max(len(batch.vision.patches) if batch.images and batch.vision else 0 for batch in batches),
            images=max(batch.images for batch in batches),
            sounds=max(batch.num_sounds for batch in batches),
            positions=max(_positions(batch) for batch in batches),
            target_tokens=max(len(batch.labels) for batch in batches),
        ),
        memory=memory,
        staged=staged_bytes(traced, ranks, initial.checkpointed),
        cards=list(cards),
        proposals=proposals_of(traced, ranks, min(short), goes_on=bool(checkpoint)) if short else [],
        length=_length(phases[-1], order, max(steps - state.step, 0), output),
        waiting=expected_waiting(config, order, ranks // sequence, state.position),
        remarks=[
            *(
                [f"{folder} has no weights: shapes are enough here, but `lmms train` reads them"]
                if weightless and initial.reads_base
                else []
            ),
            *_before_gradients(memory, states, passes_of(config, ranks)),
            *figure_remarks(config, states),
            *likely_mistakes(config.optim, opened.model, steps),
            *remarks(config, order, phases[-1], ranks // sequence, steps, state),
        ],
    )


def _positions(batch: Batch) -> int:
    """Positions of a batch's sounds in the audio tower."""
    places = batch.sounds.tower["valid_indices"] if batch.sounds and batch.num_sounds else None
    return len(places) if isinstance(places, Tensor) else 0


def _same(find: Callable[[], Base]) -> Base:
    return find()


def _no_base(find: Callable[[], Base]) -> Base:
    """An empty base, for a model folder without weights."""
    return Base(path="", digest="")


def _before_gradients(memory: Sequence[Mapping[str, int]], states: Sequence[States], passes: int) -> Iterator[str]:
    """A remark on the bytes of all gradients, where the peak of a rank comes before its last gradient."""
    rank = max(range(len(memory)), key=lambda number: sum(memory[number].values()))
    there, every = memory[rank]["gradients"], states[rank].gradients
    # With offload, gradients are in main memory.
    if passes == 1 and there < 0.99 * every and memory[rank]["optimizer"]:
        yield (
            f"gradients are {there / 1e9:.2f} GB at the peak, which comes before the pass is through backward; at the"
            f" end of backward they are {every / 1e9:.2f} GB, and the total is less than at the peak"
        )


def _recompute(memory: MemoryConfig) -> str:
    vision = f", vision {memory.vision}" if memory.vision != memory.recompute else ""
    gone = f", up to {memory.offload_activations_gb:g} GB in main memory" if memory.offload_activations_gb else ""
    return f"{memory.recompute}{vision}{gone}"


def _length(phase: RunPhase, order: Order, steps: int, output: Path) -> Length:
    of_sets = [order.costs[start:end].mean(dtype=np.float64) for start, end in pairwise(order.first_packs)]
    # Each set of a mixture has as large a share of the packs as of the turns.
    of_pack = sum(float(cost) * share.turns / PERIOD for cost, share in zip(of_sets, phase.sets, strict=True))
    return Length(
        steps=steps,
        tokens_a_step=phase.pack_tokens * phase.global_packs,
        steps_an_epoch=phase.pass_packs / phase.global_packs,
        tokens_an_epoch=phase.pack_tokens * phase.pass_packs,
        flops_a_step=of_pack * phase.global_packs,
        flops_an_epoch=of_pack * phase.pass_packs,
        tokens_per_s=_measured_rate(output),
    )


def _measured_rate(output: Path) -> float | None:
    """Tokens a second of the newest steps of the run in this folder, if there are any, without profiled steps."""
    steps = [step for step in metrics_lines(output)[-_RATE_LINES:] if not step.get("profiled")]
    rates = [rate for step in steps if (rate := step.get("tokens_per_s")) is not None]
    return median(rates) if rates else None
