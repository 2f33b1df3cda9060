"""A transformers model as transformers runs it, with what a recipe puts into it."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from lmms.train.families.vision import embed_patches
from lmms.train.model.attention import Attend, attend_documents
from lmms.train.model.forward import TrainModel
from lmms.train.model.liger import liger_functions, use_liger
from lmms.train.model.loss import LOGITS_PER_CHUNK, linear_cross_entropy
from tools.gpu.backends import attend_by
from tools.gpu.losses import Loss, Where, loss_by
from tools.gpu.plain import PlainBatch
from tools.gpu.recipes import Recipe

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
