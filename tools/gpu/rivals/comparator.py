"""Recipes of other trainers on the same packs: models and forward of transformers, with the steps of lmms.

Weights, optimizer, clipping, mixed precision and sharding are those of lmms, so only the work on a batch differs.
Batches are ready in pinned memory: making them takes no time.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from lmms.configs.contract.manifest import open_dataset
from lmms.configs.settings.optim import OptimConfig
from lmms.train import Learner, StepResult, TrainModel, start_world, stop_world, take_step, unwatched
from lmms.train.batch.batch import map_tensors
from lmms.train.batch.recipe import make_recipe
from lmms.train.data.mixture import Phase
from lmms.train.data.sets import make_order, open_sets
from lmms.train.data.steps import StepPlan, plan_steps
from lmms.train.families.vision import embed_patches
from lmms.train.model.attention import Attend, attend_documents
from lmms.train.model.build import blocks, build_model, init_random, materialize
from lmms.train.model.flops import model_cost
from lmms.train.model.liger import liger_functions, use_liger
from lmms.train.optim.groups import make_optimizer, trained_parts
from lmms.train.parallel.sharding import shard_model
from lmms.train.parallel.world import compute_dtype
from lmms.train.watch.marks import Mark, unmarked
from tools.gpu.pieces.attention import Kernel, attend_by
from tools.gpu.pieces.losses import Loss, loss_by
from tools.gpu.pieces.measuring import time_steps, waits_in
from tools.gpu.pieces.models import Sizes, model_config
from tools.gpu.pieces.packs import pack_file
from tools.gpu.pieces.trace import trace_step
from tools.gpu.pieces.training import Training, training_of
from tools.gpu.rivals.batches import IGNORED, PlainBatch, packed_batches, padded_batches


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One way to train a transformers model."""

    packed: bool
    """Whether conversations are end to end in one sequence; else a few are padded to the longest."""
    attention: Kernel
    liger: bool = False
    """Liger's norms, MLPs, rotations and fused loss."""
    chunked_loss: bool = False
    """lmms's loss over every row, as Liger's loss, instead of transformers' loss over all logits."""
    linear_patches: bool = False
    """The vision tower's convolution over patches as a product with the same weight. In bf16 cuDNN may take seconds for
    the convolution, and gains nothing by it."""


PADDED = "padded, sdpa"
STAND_IN = "packed, varlen, chunked loss, linear patches"
_LIGER = Recipe(packed=True, attention="varlen", liger=True, linear_patches=True)
COMPARATORS: Mapping[str, Recipe] = {
    PADDED: Recipe(packed=False, attention="sdpa"),
    "packed, varlen": Recipe(packed=True, attention="varlen"),
    STAND_IN: replace(_LIGER, liger=False, chunked_loss=True),
    "packed, varlen, liger, linear patches": _LIGER,
    "packed, flash-attn-2, liger, linear patches": replace(_LIGER, attention="flash-attn-2"),
}
"""The last entry is the recipe of LMMs-Engine and VeOmni, except for its patches; torch's varlen has the kernels of
flash-attn 2 too."""
RECIPE: Sequence[str] = [name for name in COMPARATORS if COMPARATORS[name].liger]
"""The packed recipe, with which goals are compared. Without Liger the recipe differs, and is slower."""

_ATTENTION = "bench_flash"
"""Name of the packed attention in transformers; with "flash" in it, vision towers attend in one call."""
_bounds: list[tuple[Tensor | None, int]] = []
"""cu_seqlens and longest conversation of the running batch, for the language model's attention: transformers itself
finds them in the position ids, and waits for the device."""


def measure_comparator(
    name: str, model: str, packs: str, folder: str, seconds: float, sizes: Sizes
) -> Iterator[Training]:
    """Measure a recipe on a file of packs, as measure_training measures a rung."""
    deadline, recipe = time.monotonic() + seconds, COMPARATORS[name]
    config = model_config(model, thin=sizes.thin)
    with ExitStack() as opened:
        world = start_world(sizes.device)
        opened.callback(stop_world)
        comparator = build_comparator(config, recipe, world.device)
        shard_model(comparator, blocks(comparator), world, compute_dtype(sizes.precision, world.device))
        materialize(comparator, world.device)
        init_random(comparator, seed=0)
        optimizer, parts = make_optimizer(comparator, OptimConfig(lr={"default": 1e-4})), trained_parts(comparator)
        learner = Learner(model=comparator, optimizer=optimizer, parts=parts, max_grad_norm=1.0, world=world)
        shown, manifest = pack_file(folder, packs), open_dataset(Path(folder) / packs).manifest
        make_batches = packed_batches if recipe.packed else padded_batches
        ready = list(make_batches(shown, make_recipe([manifest], config, "stop")))
        if world.device.type == "cuda":
            ready = [map_tensors(batch, Tensor.pin_memory) for batch in ready]
        plan = _plan(Path(folder) / packs, config, ready)
        to_device = partial(Tensor.to, device=world.device, non_blocking=True)
        arriving = cast(Any, (map_tensors(batch, to_device) for batch in cycle(ready)))

        def take(mark: Mark = unmarked) -> StepResult:
            return take_step(learner, plan, arriving, 1.0, replace(unwatched(), mark=mark))

        place = {"model": model, "packs": packs, "name": name, "says": [], "recompute": "full"}
        steps = time_steps(take, sizes, world.device, deadline)
        training = training_of(place, learner, steps, shown, model_cost(build_model(config, "none")))
        yield training
        training.waits = waits_in(take)
        yield training
        training.trace = trace_step(take, optimizer, None, world.device)
        yield training


def _plan(folder: Path, config: PretrainedConfig, ready: Sequence[PlainBatch]) -> StepPlan:
    """A step over all of these batches, which hold the packs of the folder."""
    sets = open_sets([folder])
    cost = model_cost(build_model(config, "none"))
    order = make_order(sets, Phase(), cost, seed=0, global_packs=len(sets.tokens))
    (plan,) = islice(plan_steps(order, sets), 1)
    passes = [plan.passes[0]] * len(ready)
    shows = ["pixel_values" in batch.inputs for batch in ready]
    return replace(plan, passes=passes, has_images=shows, has_sounds=[False] * len(shows))


class Comparator(TrainModel):
    """A transformers model, run by transformers; forward returns the same values as TrainModel's."""

    def __init__(self, hf: PreTrainedModel, head_loss: Loss | None) -> None:
        """head_loss: loss over all rows, with weight 0 for rows without a label; None: transformers' loss."""
        super().__init__(hf)
        self.head_loss = head_loss

    def forward(  # type: ignore[override]
        self, batch: PlainBatch, step_has_images: bool, sequence_group: None = None, *, step_has_sounds: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Sum of cross entropies over the batch's targets, and zeros for the sums by group."""
        _bounds[:] = [(batch.cu_seqlens, batch.longest)]
        if self.head_loss is None:
            # transformers divides by num_items_in_batch; 1 gives the sum.
            divisor = torch.ones((), device=batch.labels.device)
            loss = self.hf(**batch.inputs, labels=batch.labels, num_items_in_batch=divisor, use_cache=False).loss
        else:
            hidden = self.hf.model(**batch.inputs, use_cache=False).last_hidden_state.flatten(0, 1)
            labels = F.pad(batch.labels, (0, 1), value=IGNORED)[:, 1:].flatten()
            loss = self.head_loss(hidden, self.hf.lm_head.weight, labels, (labels >= 0).float())
        return loss, torch.zeros(1, 2, dtype=torch.float64, device=batch.labels.device)


def build_comparator(config: PretrainedConfig, recipe: Recipe, device: torch.device) -> Comparator:
    """The model on the meta device. NotHereError or ConfigError if a kernel of the recipe is missing.

    lmms puts Liger's functions into the model: Liger's patches know only some versions of transformers.
    """
    head_loss = loss_by("liger", device) if recipe.liger else _chunked(device) if recipe.chunked_loss else None
    packed = partial(_attention, attend_by(recipe.attention, device)) if recipe.packed else None
    with torch.device("meta"):
        hf = AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    if packed is not None:
        AttentionInterface.register(_ATTENTION, packed)
        for module in hf.modules():
            if isinstance(module, PreTrainedModel):
                module.config._attn_implementation = _ATTENTION
    hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if recipe.liger:
        use_liger(hf, liger_functions())
    if recipe.linear_patches:
        patch_embed: Any = hf.model.visual.patch_embed
        patch_embed.forward = partial(embed_patches, patch_embed.proj)
    return Comparator(hf, head_loss).train()


def _chunked(device: torch.device) -> Loss:
    loss = loss_by("chunked", device)
    return lambda hidden, weight, labels, weights: loss(hidden, weight, labels.clamp(min=0), weights)


def _attention(
    attend: Attend,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | Tensor | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over the batch's conversations, or over a tower's images."""
    if cu_seq_lens_q is None or max_length_q is None:
        ((cu_seq_lens_q, max_length_q),) = _bounds
    assert cu_seq_lens_q is not None
    return attend_documents(
        attend,
        *(module, query, key, value, attention_mask),
        scaling=scaling,
        cu_seq_lens_q=cu_seq_lens_q,
        max_length_q=int(max_length_q),
        is_causal=is_causal,
    )
