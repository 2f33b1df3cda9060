"""The forward pass: a Batch in, its summed loss out, whole and by group.

The model is that of transformers. Only what would wait for the device is replaced: its forward (masks, positions and
places of images come with the batch) and its head (see linear_cross_entropy).
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel

from lmms.configs.errors import TrainError
from lmms.train.batch.batch import Batch
from lmms.train.batch.images import normalised
from lmms.train.batch.sounds import Sounds
from lmms.train.batch.vision import Pictures
from lmms.train.families import images_of, sounds_of
from lmms.train.model.loss import HeadLoss, linear_cross_entropy
from lmms.train.model.names import language_model, towers
from lmms.train.parallel.sequence import exchange_features
from lmms.train.parallel.share import Exchange


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
        self,
        batch: Batch,
        step_has_images: bool,
        sequence_group: ProcessGroup | None = None,
        *,
        step_has_sounds: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Sum over target rows of weight * cross entropy, a scalar in fp32, not divided; and by the batch's groups,
        float64 [num_groups, 2] without gradient, see linear_cross_entropy.

        step_has_images: whether any rank has images in this forward pass. Then every rank runs the vision tower, and a
        rank without images runs it on a dummy of one patch that adds 0: all take part in the same collectives.
        step_has_sounds: the same for sounds and the audio tower.
        sequence_group: the ranks that hold the other shares of this batch; the sums are over this share alone.
        """
        hidden = last_hidden_state(self.hf, batch, step_has_images, sequence_group, step_has_sounds=step_has_sounds)
        rows = hidden.squeeze(0).index_select(0, batch.target_rows)
        return self.loss(rows, self.hf.lm_head.weight, batch.labels, batch.weights, batch.groups, batch.num_groups)


def last_hidden_state(
    hf: PreTrainedModel,
    batch: Batch,
    step_has_images: bool,
    sequence_group: ProcessGroup | None = None,
    *,
    step_has_sounds: bool = False,
) -> Tensor:
    """[1, T, hidden]: the input of the language model's head for this share's T tokens."""
    ranks = 1 if sequence_group is None else sequence_group.size()
    if ranks != batch.share.ranks:
        raise TrainError(f"the batch is cut for {batch.share.ranks} ranks, but the sequence group has {ranks}")
    for kind, number, expected in (
        ("images", batch.images, step_has_images),
        ("sounds", batch.num_sounds, step_has_sounds),
    ):
        if number and not expected:
            names = ", ".join(batch.packs)
            raise TrainError(f"{kind} in {names}, but the step was said to have none; the sidecar is wrong")
    embeddings = hf.get_input_embeddings()(batch.input_ids)
    deep: dict[str, object] = {}
    if step_has_images and batch.vision is not None:
        embeddings, deep = _with_images(hf, embeddings, batch.vision, sequence_group)
    if step_has_sounds and batch.sounds is not None:
        embeddings = _with_sounds(hf, embeddings, batch.sounds, sequence_group)
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
    images, tower = images_of(hf.config.model_type), dict(towers(hf))["vision"]
    features = images.features(tower(pixels, grid_thw=pictures.grid_thw, **pictures.tower))
    embeddings, deep = _placed(embeddings, features, pictures.rows, pictures.exchange, sequence_group)
    return embeddings, images.deep_inputs(pictures.rows, deep) if images.deep_inputs and deep else {}


def _with_sounds(
    hf: PreTrainedModel, embeddings: Tensor, sounds: Sounds, sequence_group: ProcessGroup | None
) -> Tensor:
    """The embeddings with sound features in their rows."""
    features = sounds_of(hf.config.model_type).features(hf, sounds.frames, sounds.tower)
    return _placed(embeddings, [features], sounds.rows, sounds.exchange, sequence_group)[0]


def _placed(
    embeddings: Tensor,
    features: Sequence[Tensor],
    rows: Tensor,
    exchange: Exchange | None,
    sequence_group: ProcessGroup | None,
) -> tuple[Tensor, list[Tensor]]:
    """The embeddings with a tower's first features in these rows, and the other features of these rows.

    Without rows the features are a dummy's, of which nothing but 0 is added.
    """
    if sequence_group is not None and exchange is not None:
        features = [exchange_features(part, exchange, sequence_group) for part in features]
    elif len(rows) == 0:
        return embeddings + 0.0 * sum(part.sum() for part in features), []
    # The features after these rows are of padding.
    first, *deep = (part[: len(rows)] for part in features)
    return embeddings.index_copy(1, rows, first.to(embeddings.dtype).unsqueeze(0)), deep
