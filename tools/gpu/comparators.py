"""Others' recipes on the same packs: transformers' own models and forward, stepped by the trainer's own step.

Weights, optimizer, clipping, mixed precision and sharding are the trainer's, so what differs is what is done with a
batch. Batches stand ready in pinned memory: no time is taken for making them.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from lmms.configs.manifest import open_dataset
from lmms.configs.optim import OptimConfig
from lmms.train.attention import Attend, attend_documents
from lmms.train.flops import model_cost, pack_flops
from lmms.train.liger import liger_functions, use_liger
from lmms.train.loss import LOGITS_PER_CHUNK, linear_cross_entropy
from lmms.train.marks import Mark, unmarked
from lmms.train.mixture import Phase
from lmms.train.model import TrainModel, blocks, embed_patches, init_random, materialize
from lmms.train.optim import make_optimizer, trained_parts
from lmms.train.parallel import compute_dtype, shard_model, start_world, stop_world
from lmms.train.passes import StepPlan, plan_steps
from lmms.train.recipe import make_recipe
from lmms.train.sets import make_order, open_sets
from lmms.train.signals import Asked
from lmms.train.step import StepResult, take_step
from tools.gpu.backends import attend_by
from tools.gpu.losses import Loss, Where, loss_by
from tools.gpu.models import model_config
from tools.gpu.packs import pack_file
from tools.gpu.plain import PlainBatch, packed_batches, padded_batches
from tools.gpu.recipes import COMPARATORS, Recipe
from tools.gpu.sizes import Sizes
from tools.gpu.steps import faults_of, time_steps
from tools.gpu.traces import trace_step
from tools.gpu.training import Measured, update_bytes
from tools.gpu.waits import waits_in

_ATTENTION = "bench_flash"
"""Name that transformers knows the packed attention by; "flash" has its vision towers attend in one call."""


class Comparator(TrainModel):
    """A transformers model as transformers runs it; what it returns is what TrainModel returns."""

    def __init__(self, hf: PreTrainedModel, head_loss: Loss | None) -> None:
        """head_loss: over all rows, of which those of label -100 weigh 0; None: transformers' own."""
        super().__init__(hf)
        self.head_loss = head_loss

    def forward(  # type: ignore[override]
        self, batch: PlainBatch, step_has_images: bool, sequence_group: None = None
    ) -> tuple[Tensor, Tensor]:
        """Sum of cross entropies over the batch's targets; and nothing by group."""
        _bounds[:] = [(batch.cu_seqlens, batch.longest)]
        if self.head_loss is None:
            # A sum: one divides by the number of targets, here by 1.
            one = torch.ones((), device=batch.labels.device)
            loss = self.hf(**batch.inputs, labels=batch.labels, num_items_in_batch=one, use_cache=False).loss
        else:
            hidden = self.hf.model(**batch.inputs, use_cache=False).last_hidden_state.flatten(0, 1)
            labels = F.pad(batch.labels, (0, 1), value=-100)[:, 1:].flatten()
            loss = self.head_loss(hidden, self.hf.lm_head.weight, labels, (labels >= 0).float())
        return loss, torch.zeros(1, 2, dtype=torch.float64, device=batch.labels.device)


_bounds: list[tuple[Tensor | None, int]] = []
"""cu_seqlens and longest conversation of the batch that is computed, for the language model's attention: transformers'
own way finds them in the position ids, waiting for the device."""


def build_comparator(config: PretrainedConfig, recipe: Recipe, device: torch.device) -> Comparator:
    """The model on the meta device. NotHereError or ConfigError where a kernel of the recipe is missing.

    Liger's functions are put in by the trainer's own hand: Liger's patches know only some versions of transformers.
    """
    head_loss: Loss | None = _all_rows if recipe.loss == "all rows" else None
    if recipe.liger:
        head_loss = loss_by("liger", Where(device=device, chunk=LOGITS_PER_CHUNK, backend="inductor"))
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


def _all_rows(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, weight, labels.clamp(min=0), weights, torch.zeros_like(labels), 1)[0]


def measure_comparator(
    name: str, model: str, packs: str, folder: str, seconds: float, sizes: Sizes
) -> Iterator[Measured]:
    """Measure a recipe on a file of packs, as training.measure_training measures a rung."""
    deadline, recipe = time.monotonic() + seconds, COMPARATORS[name]
    config = model_config(model, thin=sizes.thin)
    with ExitStack() as held:
        world = start_world(sizes.device)
        held.callback(stop_world)
        dtype = compute_dtype(sizes.precision, world.device)
        comparator = build_comparator(config, recipe, world.device)
        shard_model(comparator, blocks(comparator), world, dtype)
        materialize(comparator, world.device)
        init_random(comparator, seed=0)
        optimizer = make_optimizer(comparator, OptimConfig(lr={"default": 1e-4}))
        parts = trained_parts(comparator)
        shown = pack_file(folder, packs)
        dataset = open_dataset(Path(folder) / packs)
        made = (packed_batches if recipe.packed else padded_batches)(
            shown, make_recipe([dataset.manifest], config, "stop")
        )
        ready = [batch.pinned() for batch in made] if world.device.type == "cuda" else list(made)
        plan = _plan(Path(folder) / packs, config, ready)
        arriving = (batch.to(world.device) for batch in cycle(ready))

        def take(mark: Mark = unmarked) -> StepResult:
            of_run = (comparator, optimizer, parts, plan, cast(Any, arriving), world)
            return take_step(*of_run, 1.0, 1.0, Asked(), lambda coming: None, mark)

        steps = time_steps(take, sizes, world.device, deadline)
        parameters = sum(parameter.numel() for parameter in comparator.parameters())
        faults = faults_of(steps)
        cost = model_cost(config)
        found = Measured(
            model=model,
            packs=packs,
            name=name,
            says=[],
            parameters=parameters,
            trained=parameters,
            tokens=plan.tokens,
            target_tokens=plan.target_tokens,
            patches=sum(pack.patches for pack in shown),
            flops=sum(pack_flops(cost, pack) for pack in shown),
            steps=steps,
            seconds=steps.median,
            tokens_per_s=plan.tokens / steps.median,
            recompute="full",
            optimizer_bytes=update_bytes(optimizer),
            faults=faults,
            passed=not faults,
        )
        yield found
        found.waits = waits_in(take)
        yield found
        found.trace = trace_step(take, optimizer, "", world.device)
        yield found


def _plan(folder: Path, config: PretrainedConfig, ready: list[PlainBatch]) -> StepPlan:
    """A step over all of these batches, which hold the packs of the folder."""
    sets = open_sets([folder])
    order = make_order(sets, Phase(), model_cost(config), seed=0, global_packs=len(sets.tokens))
    (plan,) = islice(plan_steps(order, sets, 0, 1, 1, 0, 0, look_ahead=False), 1)
    passes = [plan.passes[0]] * len(ready)
    return replace(plan, passes=passes, has_images=["pixel_values" in batch.inputs for batch in ready])


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
    """transformers' attention interface over the batch's conversations, or over the images that a tower names."""
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
