"""What a forward pass is told: rows and labels of targets, positions, places of images; and what is refused."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from lmms.configs.contract import CONTRACT_VERSION, Pack
from lmms.configs.errors import DatasetError, ModelError, TrainError
from lmms.configs.manifest import Manifest
from lmms.train.batch import make_batch, make_recipe
from tests.train.helpers import (
    FAMILIES,
    IMAGE_TOKEN,
    TINY_VISION,
    VISION_FAMILIES,
    make_pack,
    picture,
    talk,
    tiny_config,
    tiny_recipe,
)


def two_packs(family: str) -> list[Pack]:
    images = [picture(1), picture(2, 32, 24)] if family in VISION_FAMILIES else []
    first = make_pack([talk(0, 10, row=7), talk(1, 12, images[:1], row=8)])
    return [first, make_pack([talk(2, 9, images, row=9), talk(3, 7, row=10)])]


def with_media_bytes(pack: Pack, number: int, data: bytes) -> Pack:
    """The pack with other bytes behind one of its images."""
    parts = pack.media_data()
    parts[number] = data
    media = tuple(replace(m, bytes=len(part)) for m, part in zip(pack.media, parts, strict=True))
    return replace(pack, media=media, media_bytes=b"".join(parts))


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_predicted_by_the_row_before_them(family: str) -> None:
    packs = two_packs(family)
    batch = make_batch(packs, tiny_recipe(family), [41, 42])
    ids = np.concatenate([pack.input_ids for pack in packs])
    expected = []
    for pack, start in zip(packs, (0, len(packs[0].input_ids)), strict=True):
        for (first, end), weight in zip(pack.targets.tolist(), pack.target_weights.tolist(), strict=True):
            expected += [(start + i - 1, int(ids[start + i]), weight) for i in range(first, end)]
    rows, labels, weights = (list(column) for column in zip(*expected, strict=True))
    assert batch.input_ids.tolist() == [ids.tolist()]
    assert batch.target_rows.tolist() == rows
    assert batch.labels.tolist() == labels
    assert batch.weights.tolist() == weights
    assert (batch.packs, batch.tokens, batch.target_tokens, batch.masked) == ((41, 42), len(ids), len(rows), ())
    assert batch.images == sum(len(pack.media) for pack in packs)


@pytest.mark.parametrize("family", FAMILIES)
def test_conversations_of_all_packs_stand_side_by_side(family: str) -> None:
    packs = two_packs(family)
    batch = make_batch(packs, tiny_recipe(family))
    lengths = [length for pack in packs for length in pack.lengths.tolist()]
    assert batch.cu_seqlens.diff().tolist() == lengths
    assert batch.max_length == max(lengths)
    assert isinstance(batch.max_length, int)
    types = (batch.input_ids.dtype, batch.position_ids.dtype, batch.target_rows.dtype, batch.labels.dtype)
    assert types == (torch.int64,) * 4
    assert (batch.cu_seqlens.dtype, batch.weights.dtype) == (torch.int32, torch.float32)
    assert batch.position_ids.shape == ((3, 1, batch.tokens) if family in VISION_FAMILIES else (1, batch.tokens))
    assert not batch.position_ids[..., batch.cu_seqlens[:-1].long()].any()
    assert (batch.position_ids.reshape(-1, batch.tokens)[:, : lengths[0]] == torch.arange(lengths[0])).all()


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_images_fill_exactly_the_placeholders(family: str) -> None:
    batch = make_batch(two_packs(family), tiny_recipe(family))
    assert batch.vision is not None
    assert batch.vision.rows.tolist() == (batch.input_ids[0] == IMAGE_TOKEN).nonzero().flatten().tolist()
    patches = int(batch.vision.grid_thw.prod(dim=1).sum())
    assert batch.vision.patches.shape == (patches, 3 * TINY_VISION.patch_size**2)
    assert batch.vision.patches.dtype == torch.uint8
    assert len(batch.vision.rows) * TINY_VISION.merge_size**2 == patches


def test_a_batch_without_images_has_a_dummy_that_fills_no_row() -> None:
    batch = make_batch([make_pack([talk(0, 10)])], tiny_recipe("qwen3_vl"))
    assert batch.vision is not None
    assert batch.images == len(batch.vision.rows) == 0
    assert batch.vision.grid_thw.tolist() == [[1, 2, 2]]
    assert make_batch([make_pack([talk(0, 10)])], tiny_recipe("qwen3")).vision is None


@pytest.mark.parametrize("step", [-1, 1])
def test_placeholders_beside_their_stated_place_are_an_error(step: int) -> None:
    pack = make_pack([talk(0, 10), talk(1, 12, [picture(1)])])
    moved = replace(pack, media=tuple(replace(m, start=m.start + step, end=m.end + step) for m in pack.media))
    with pytest.raises(DatasetError, match="pack 5 cannot be used: the image placeholders"):
        make_batch([moved], tiny_recipe("qwen2_vl"), [5])


def test_a_grid_of_another_number_of_tokens_is_an_error() -> None:
    pack = make_pack([talk(1, 12, [picture(1)])])
    wrong = replace(pack, media=(replace(pack.media[0], grid_thw=(1, 4, 8)),))
    with pytest.raises(DatasetError, match="needs another number"):
        make_batch([wrong], tiny_recipe("qwen2_vl"))


def test_media_that_are_not_images_are_an_error() -> None:
    pack = make_pack([talk(1, 12, [picture(1)])])
    with pytest.raises(DatasetError, match="kind 'video'"):
        make_batch([replace(pack, media=(replace(pack.media[0], kind="video"),))], tiny_recipe("qwen2_vl"))


@pytest.mark.parametrize("token", [-1, 64])
def test_token_ids_outside_the_vocabulary_are_an_error(token: int) -> None:
    pack = make_pack([talk(0, 10)])
    ids = pack.input_ids.copy()
    ids[4] = token
    with pytest.raises(DatasetError, match="vocabulary of 64"):
        make_batch([replace(pack, input_ids=ids)], tiny_recipe("qwen2"))


@pytest.mark.parametrize(("data", "what"), [(b"no picture", "decoded"), (picture(1, 16, 16), "16x16")])
def test_a_bad_image_stops_with_the_name_of_its_record(data: bytes, what: str) -> None:
    first, second = two_packs("qwen2_5_vl")
    bad = with_media_bytes(second, 1, data)
    with pytest.raises(TrainError, match=rf"pack 4, segment 0: first.jsonl row 9: .*{what}.*on_bad_media: mask"):
        make_batch([first, bad], tiny_recipe("qwen2_5_vl"), [3, 4])


def test_a_bad_image_can_mask_its_conversation_alone() -> None:
    first, second = two_packs("qwen2_5_vl")
    bad = with_media_bytes(second, 1, b"no picture")
    good = make_batch([first, second], tiny_recipe("qwen2_5_vl"), [3, 4])
    batch = make_batch([first, bad], tiny_recipe("qwen2_5_vl", "mask"), [3, 4])
    start, end = batch.cu_seqlens[2:4].tolist()
    inside = (batch.target_rows >= start) & (batch.target_rows < end)
    assert inside.any()
    assert not batch.weights[inside].any()
    assert torch.equal(batch.weights[~inside], good.weights[~inside])
    assert torch.equal(batch.position_ids, good.position_ids)
    (sentence,) = batch.masked
    assert sentence.startswith("pack 4, segment 0: first.jsonl row 9: ")
    assert batch.vision is not None
    assert good.vision is not None
    kept = len(good.vision.patches) - int(good.vision.grid_thw[-1].prod())
    assert torch.equal(batch.vision.patches[:kept], good.vision.patches[:kept])
    assert good.vision.patches[kept:].any()
    assert not batch.vision.patches[kept:].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_and_recipes_travel_between_processes(family: str) -> None:
    recipe = pickle.loads(pickle.dumps(tiny_recipe(family)))
    assert recipe == tiny_recipe(family)
    batch = make_batch(two_packs(family), recipe)
    again = pickle.loads(pickle.dumps(batch))
    assert torch.equal(again.input_ids, batch.input_ids)


def test_to_moves_every_tensor() -> None:
    batch = make_batch(two_packs("qwen2_5_vl"), tiny_recipe("qwen2_5_vl")).to(torch.device("meta"))
    assert batch.vision is not None
    tensors = [batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.target_rows, batch.labels, batch.weights]
    tensors += [batch.vision.patches, batch.vision.pixel_constants, batch.vision.grid_thw, batch.vision.rows]
    tensors += [value for value in batch.vision.tower.values() if isinstance(value, torch.Tensor)]
    assert all(tensor.is_meta for tensor in tensors)
    assert isinstance(batch.vision.tower["max_window_seqlen"], int)


def manifest_of(family: str) -> Manifest:
    """The manifest of shards for a tiny model."""
    has_vision = family in VISION_FAMILIES
    return Manifest(
        contract=CONTRACT_VERSION,
        family=family,
        model="tiny",
        seq_len=4096,
        max_patches=4096,
        image_token_id=IMAGE_TOKEN if has_vision else None,
        vision=TINY_VISION if has_vision else None,
        packing="none",
        fingerprints={},
        counts={},
        rejects={},
        notes={},
        sources=({"name": "first.jsonl"}, {"name": "second.jsonl"}),
        settings={},
        files={},
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recipe_follows_from_manifest_and_config(family: str) -> None:
    recipe = make_recipe(manifest_of(family), tiny_config(family), "stop")
    expected = tiny_recipe(family)
    assert replace(recipe, limits=expected.limits) == expected
    assert recipe.limits.merge_size == (2 if family in VISION_FAMILIES else 1)


@pytest.mark.parametrize(
    ("name", "manifest"),
    [
        ("model_type", replace(manifest_of("qwen2_5_vl"), family="qwen2_vl")),
        ("image_token_id", replace(manifest_of("qwen2_5_vl"), image_token_id=5)),
        ("patch_size", replace(manifest_of("qwen2_5_vl"), vision=replace(TINY_VISION, patch_size=14))),
        ("spatial_merge_size", replace(manifest_of("qwen2_5_vl"), vision=replace(TINY_VISION, merge_size=1))),
        ("temporal_patch_size", replace(manifest_of("qwen2_5_vl"), vision=replace(TINY_VISION, temporal_patch_size=1))),
    ],
)
def test_shards_that_do_not_fit_the_model_are_refused(name: str, manifest: Manifest) -> None:
    with pytest.raises(ModelError, match=f"^{name} is"):
        make_recipe(manifest, tiny_config("qwen2_5_vl"), "stop")
