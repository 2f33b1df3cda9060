"""The shares of a batch are the batch: every token, target and image is in one, and every feature finds its row."""

import socket
from dataclasses import replace

import pytest
import torch

from lmms.configs.contract.pack import Pack
from lmms.configs.errors import TrainError
from lmms.train.batch.batch import Batch, make_batch
from lmms.train.batch.recipe import Recipe
from lmms.train.batch.transfer import receive, send
from lmms.train.batch.vision import Pictures
from lmms.train.parallel.share import Share, image_sizes, share_media
from tests.kit.model.models import IMAGE_TOKEN, make_pack, picture, places, talk, tiny_recipe

SIZES = ((24, 16), (64, 48), (16, 16), (32, 32), (40, 24))
"""Of the images of the second conversation; the others have none."""


def packs(images: int = len(SIZES)) -> list[Pack]:
    pictures = [picture(i, *size) for i, size in enumerate(SIZES[:images])]
    return [make_pack([talk(0, 9), talk(1, 7, pictures, row=1)]), make_pack([talk(2, 12, row=2)])]


def shares(ranks: int, made: list[Pack], recipe: Recipe) -> list[Batch]:
    where = places(3, 4)[: len(made)]
    return [make_batch(made, replace(recipe, share=Share(i, ranks)), where) for i in range(ranks)]


def pictures_of(batch: Batch) -> Pictures:
    assert batch.vision is not None
    return batch.vision


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("family", ["qwen3", "qwen2_5_vl"])
def test_shares_put_together_are_the_batch(family: str, ranks: int) -> None:
    made, recipe = packs(0 if family == "qwen3" else 5), tiny_recipe(family, by="source")
    whole, parts = make_batch(made, recipe, places(3, 4)), shares(ranks, made, recipe)
    tokens, length = whole.input_ids.shape[1], parts[0].input_ids.shape[1]
    assert all(part.input_ids.shape == (1, length) for part in parts)
    assert 0 <= length * ranks - tokens < ranks
    for name in ("input_ids", "position_ids"):
        together = torch.cat([getattr(part, name) for part in parts], dim=-1)
        assert torch.equal(together[..., :tokens], getattr(whole, name))
        assert not together[..., tokens:].any()
    for name in ("labels", "weights", "groups"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    rows = [part.target_rows + i * length for i, part in enumerate(parts)]
    assert torch.equal(torch.cat(rows), whole.target_rows)
    assert sum(part.weight for part in parts) == whole.weight
    assert sum(part.digest for part in parts) == whole.digest != 0
    assert {part.images for part in parts} == {whole.images}
    documents = whole.cu_seqlens.tolist()
    for part in parts:
        padded = part.cu_seqlens.tolist()
        assert padded == (documents if tokens == length * ranks else [*documents, length * ranks])


def test_a_sequence_shorter_than_its_ranks_leaves_some_with_nothing_to_predict() -> None:
    made = [make_pack([talk(0, 5)])]
    parts = shares(8, made, tiny_recipe("qwen3"))
    tokens = len(made[0].input_ids)
    assert tokens == 7
    assert [part.input_ids.shape[1] for part in parts] == [1] * 8
    assert len(parts[-1].target_rows) == 0
    assert parts[-1].cu_seqlens.tolist() == [0, 7, 8]


def test_images_are_dealt_out_whole_by_patches() -> None:
    media = packs()[0].media
    # Of 24, 192, 16, 64 and 60 patches: the largest outweighs all others.
    assert share_media(image_sizes(media), 2) == [[1], [0, 2, 3, 4]]
    assert share_media(image_sizes(media), 1) == [[0, 1, 2, 3, 4]]
    assert sorted(share_media(image_sizes(media), 8)) == [[], [], [], [0], [1], [2], [3], [4]]
    assert share_media({}, 2) == [[], []]


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_features_of_all_ranks_find_their_rows(ranks: int) -> None:
    made, recipe = packs(), tiny_recipe("qwen2_5_vl")
    parts = shares(ranks, made, recipe)
    length = parts[0].input_ids.shape[1]
    # A feature here is the row that it belongs to, in the order of the images of its rank.
    features = [
        [row for image in images for row in range(made[0].media[image].start, made[0].media[image].end)]
        for images in share_media(image_sizes(made[0].media), ranks)
    ]
    outgoing = []
    for part, own in zip(parts, features, strict=True):
        exchange = pictures_of(part).exchange
        assert exchange is not None
        assert sum(exchange.sent) == len(own)
        outgoing.append(torch.tensor(own).split(list(exchange.sent)))
    for i, part in enumerate(parts):
        vision = pictures_of(part)
        assert vision.exchange is not None
        arrived = [sent[i] for sent in outgoing]
        assert vision.exchange.received == tuple(map(len, arrived))
        assert torch.equal(vision.rows + i * length, torch.cat(arrived))
        placeholders = (part.input_ids[0] == IMAGE_TOKEN).nonzero().flatten()
        assert torch.equal(vision.rows.sort().values, placeholders)


def test_a_rank_decodes_its_own_images_and_runs_a_dummy_without_any() -> None:
    whole = pictures_of(make_batch(packs(), tiny_recipe("qwen2_5_vl"), places(3, 4)))
    parts = [pictures_of(part) for part in shares(8, packs(), tiny_recipe("qwen2_5_vl"))]
    assert sorted(len(part.patches) for part in parts[:5]) == sorted(whole.grid_thw.prod(dim=1).tolist())
    for idle in parts[5:]:
        assert idle.grid_thw.tolist() == [[1, 2, 2]]
        assert not idle.patches.any()
        assert idle.exchange is not None
        assert idle.exchange.sent == (0,) * 8


def test_shares_that_are_empty_of_something_travel_between_processes() -> None:
    here, there = socket.socketpair()
    with here, there:
        for part in shares(8, packs(1), tiny_recipe("qwen2_5_vl")):
            send(here, part)
            again = receive(there)
            assert torch.equal(again.target_rows, part.target_rows)
            assert torch.equal(pictures_of(again).rows, pictures_of(part).rows)
            assert pictures_of(again).exchange == pictures_of(part).exchange


def test_an_image_that_fails_stops_the_rank_whose_share_it_is_or_is_masked_for_all() -> None:
    first, second = packs()
    bad = replace(first, media_bytes=b"\0" * len(first.media_bytes))
    recipe = tiny_recipe("qwen2_5_vl")
    own = replace(recipe, share=Share(0, 8))
    with pytest.raises(TrainError, match="pack 3, segment 1"):
        make_batch([bad, second], own, places(3, 4))
    make_batch([bad, second], replace(recipe, share=Share(7, 8)), places(3, 4))

    masking = tiny_recipe("qwen2_5_vl", "mask")
    whole, parts = make_batch([bad, second], masking, places(3, 4)), shares(8, [bad, second], masking)
    assert [len(part.masked) for part in parts] == [len(whole.masked), *[0] * 7] == [1, *[0] * 7]
    assert torch.equal(torch.cat([part.weights for part in parts]), whole.weights)
    assert not whole.weights.all()
