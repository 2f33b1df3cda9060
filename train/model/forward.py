"""The forward pass: a Batch in, its summed loss out, whole and by group.

The model is that of transformers. Only what would wait for the device is replaced: its forward (masks, positions and
places of images come with the batch) and its head (see linear_cross_entropy).
"""

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel

from lmms.configs.errors import TrainError
from lmms.train.batch.batch import Batch
from lmms.train.batch.images import normalised
from lmms.train.batch.vision import Pictures
from lmms.train.families import images_of
from lmms.train.model.loss import HeadLoss, linear_cross_entropy
from lmms.train.model.names import language_model, towers
from lmms.train.parallel.sequence import exchange_features


class TrainModel(nn.Module):
    """The unit that is sharded and stepped. `hf` is the transformers model, which has all of the parameters."""

    loss: HeadLoss
    """linear_cross_entropy, or the loss that took its place."""

    def __init__(self, hf: PreTrainedModel) -> None:
        super().__init__()
        self.hf = hf
        self.loss = linear_cross_entropy
        self.tied = hf.lm_head.weight is hf.get_input_embeddings().weight

    def forward(
        self, batch: Batch, step_has_images: bool, sequence_group: ProcessGroup | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sum over target rows of weight * cross entropy, a scalar in fp32, not divided; and by the batch's groups,
        float64 [num_groups, 2] without gradient, see linear_cross_entropy.

        step_has_images: whether any rank has images in this forward pass. Then every rank runs the vision tower, and a
        rank without images runs it on a dummy of one patch that adds 0: all take part in the same collectives.
        sequence_group: the ranks that hold the other shares of this batch; the sums are over this share alone.
        """
        hidden = last_hidden_state(self.hf, batch, step_has_images, sequence_group)
        rows = hidden.squeeze(0).index_select(0, batch.target_rows)
        return self.loss(rows, self.hf.lm_head.weight, batch.labels, batch.weights, batch.groups, batch.num_groups)


def last_hidden_state(
    hf: PreTrainedModel, batch: Batch, step_has_images: bool, sequence_group: ProcessGroup | None = None
) -> Tensor:
    """[1, T, hidden]: the input of the language model's head for this share's T tokens."""
    ranks = 1 if sequence_group is None else sequence_group.size()
    if ranks != batch.share.ranks:
        raise TrainError(f"the batch is cut for {batch.share.ranks} ranks, but the sequence group has {ranks}")
    if batch.images and not step_has_images:
        names = ", ".join(batch.packs)
        raise TrainError(f"images in {names}, but the step was said to have none; the sidecar is wrong")
    embeddings = hf.get_input_embeddings()(batch.input_ids)
    deep: dict[str, object] = {}
    if step_has_images and batch.vision is not None:
        embeddings, deep = _with_images(hf, embeddings, batch.vision, sequence_group)
    output = language_model(hf)(
        inputs_embeds=embeddings,
        position_ids=batch.position_ids,
        cu_seq_lens_q=batch.cu_seqlens,
        cu_seq_lens_k=batch.cu_seqlens,
        max_length_q=batch.max_length,
        max_length_k=batch.max_length,
        use_cache=False,
        sequence_group=sequence_group,
        **deep,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def _with_images(
    hf: PreTrainedModel, embeddings: Tensor, pictures: Pictures, sequence_group: ProcessGroup | None
) -> tuple[Tensor, dict[str, object]]:
    """The embeddings with image features in their rows, and the features that deeper layers take."""
    pixels = normalised(pictures.patches, pictures.pixel_constants, pictures.temporal_patch_size, pictures.frames)
    images, ((_, tower),) = images_of(hf.config.model_type), towers(hf)
    features, *deep = images.features(tower(pixels, grid_thw=pictures.grid_thw, **pictures.tower))
    if sequence_group is not None and pictures.exchange is not None:
        features, *deep = (exchange_features(part, pictures.exchange, sequence_group) for part in (features, *deep))
    elif len(pictures.rows) == 0:
        return embeddings + 0.0 * sum(f.sum() for f in (features, *deep)), {}
    # The features after these rows are of padding.
    features, *deep = (part[: len(pictures.rows)] for part in (features, *deep))
    embeddings = embeddings.index_copy(1, pictures.rows, features.to(embeddings.dtype).unsqueeze(0))
    return embeddings, images.deep_inputs(pictures.rows, deep) if images.deep_inputs else {}
