"""What a forward pass is told: rows and labels of targets, positions, places of images; and what is refused."""

import pickle
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch

from lmms.configs.contract.hashing import mix64
from lmms.configs.contract.media.geometry import Vision, image_grid
from lmms.configs.contract.pack import Pack
from lmms.configs.errors import DatasetError, TrainError
from lmms.train.batch.batch import Batch, make_batch
from tests.kit.model.models import (
    FAMILIES,
    IMAGE_TOKEN,
    TINY_VISION,
    VISION_FAMILIES,
    joined,
    make_pack,
    picture,
    places,
    talk,
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
    batch = make_batch(packs, tiny_recipe(family), places(41, 42))
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
    assert batch.weight == sum(weights)
    assert (batch.packs, batch.masked) == (("pack 41", "pack 42"), ())
    assert batch.images == sum(len(pack.media) for pack in packs)


@pytest.mark.parametrize("family", FAMILIES)
def test_conversations_of_all_packs_stand_side_by_side(family: str) -> None:
    packs = two_packs(family)
    batch = joined(packs, tiny_recipe(family))
    lengths = [length for pack in packs for length in pack.lengths.tolist()]
    assert batch.cu_seqlens.diff().tolist() == lengths
    assert batch.max_length == max(lengths)
    assert isinstance(batch.max_length, int)
    types = (batch.input_ids.dtype, batch.position_ids.dtype, batch.target_rows.dtype, batch.labels.dtype)
    assert types == (torch.int64,) * 4
    assert (batch.cu_seqlens.dtype, batch.weights.dtype) == (torch.int32, torch.float32)
    tokens = sum(lengths)
    assert batch.position_ids.shape == ((3, 1, tokens) if family in VISION_FAMILIES else (1, tokens))
    assert not batch.position_ids[..., batch.cu_seqlens[:-1].long()].any()
    assert (batch.position_ids.reshape(-1, tokens)[:, : lengths[0]] == torch.arange(lengths[0])).all()


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_images_fill_exactly_the_placeholders(family: str) -> None:
    batch = joined(two_packs(family), tiny_recipe(family))
    assert batch.vision is not None
    assert batch.vision.rows.tolist() == (batch.input_ids[0] == IMAGE_TOKEN).nonzero().flatten().tolist()
    patches = int(batch.vision.grid_thw.prod(dim=1).sum())
    assert batch.vision.patches.shape == (patches, 3 * TINY_VISION.patch_size**2)
    assert batch.vision.patches.dtype == torch.uint8
    assert len(batch.vision.rows) * TINY_VISION.merge_size**2 == patches


def test_a_batch_without_images_has_a_dummy_that_fills_no_row() -> None:
    batch = joined([make_pack([talk(0, 10)])], tiny_recipe("qwen3_vl"))
    assert batch.vision is not None
    assert batch.images == len(batch.vision.rows) == 0
    assert batch.vision.grid_thw.tolist() == [[1, 2, 2]]
    assert joined([make_pack([talk(0, 10)])], tiny_recipe("qwen3")).vision is None


@pytest.mark.parametrize("step", [-1, 1])
def test_placeholders_beside_their_stated_place_are_an_error(step: int) -> None:
    pack = make_pack([talk(0, 10), talk(1, 12, [picture(1)])])
    moved = replace(pack, media=tuple(replace(m, start=m.start + step, end=m.end + step) for m in pack.media))
    with pytest.raises(DatasetError, match="pack 5 cannot be used: the image placeholders"):
        make_batch([moved], tiny_recipe("qwen2_vl"), places(5))


def test_a_grid_of_another_number_of_tokens_is_an_error() -> None:
    pack = make_pack([talk(1, 12, [picture(1)])])
    wrong = replace(pack, media=(replace(pack.media[0], grid_thw=(1, 4, 8)),))
    with pytest.raises(DatasetError, match="needs another number"):
        joined([wrong], tiny_recipe("qwen2_vl"))


def test_media_that_are_not_images_are_an_error() -> None:
    pack = make_pack([talk(1, 12, [picture(1)])])
    with pytest.raises(DatasetError, match="kind 'video'"):
        joined([replace(pack, media=(replace(pack.media[0], kind="video"),))], tiny_recipe("qwen2_vl"))


@pytest.mark.parametrize("token", [-1, 64])
def test_token_ids_outside_the_vocabulary_are_an_error(token: int) -> None:
    pack = make_pack([talk(0, 10)])
    ids = pack.input_ids.copy()
    ids[4] = token
    with pytest.raises(DatasetError, match="vocabulary of 64"):
        joined([replace(pack, input_ids=ids)], tiny_recipe("qwen2"))


@pytest.mark.parametrize("source", [-1, 2])
def test_sources_outside_the_manifest_are_an_error(source: int) -> None:
    pack = make_pack([talk(0, 10), talk(1, 5)])
    samples = pack.samples.copy()
    samples[1, 0] = source
    with pytest.raises(DatasetError, match=r"pack 0 cannot be used: .*source outside the manifest's 2"):
        joined([replace(pack, samples=samples)], tiny_recipe("qwen2"))


@pytest.mark.parametrize(("data", "what"), [(b"no picture", "decoded"), (picture(1, 16, 16), "16x16")])
def test_a_bad_image_stops_with_the_name_of_its_record(data: bytes, what: str) -> None:
    first, second = two_packs("qwen2_5_vl")
    bad = with_media_bytes(second, 1, data)
    with pytest.raises(TrainError, match=rf"pack 4, segment 0: first.jsonl row 9: .*{what}.*on_bad_media: mask"):
        make_batch([first, bad], tiny_recipe("qwen2_5_vl"), places(3, 4))


def test_a_bad_image_can_mask_its_conversation_alone() -> None:
    first, second = two_packs("qwen2_5_vl")
    bad = with_media_bytes(second, 1, b"no picture")
    good = make_batch([first, second], tiny_recipe("qwen2_5_vl"), places(3, 4))
    batch = make_batch([first, bad], tiny_recipe("qwen2_5_vl", "mask"), places(3, 4))
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
    batch = joined(two_packs(family), recipe)
    again = pickle.loads(pickle.dumps(batch))
    assert torch.equal(again.input_ids, batch.input_ids)


def test_to_moves_every_tensor() -> None:
    batch = joined(two_packs("qwen2_5_vl"), tiny_recipe("qwen2_5_vl")).to(torch.device("meta"))
    assert batch.vision is not None
    tensors = [batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.target_rows, batch.labels, batch.weights]
    tensors += [
        batch.groups,
        batch.vision.patches,
        batch.vision.pixel_constants,
        batch.vision.grid_thw,
        batch.vision.rows,
    ]
    tensors += [value for value in batch.vision.tower.values() if isinstance(value, torch.Tensor)]
    assert all(tensor.is_meta for tensor in tensors)
    assert isinstance(batch.vision.tower["max_window_seqlen"], int)


def test_targets_are_told_apart_by_set_or_by_source_of_all_sets() -> None:
    packs = two_packs("qwen3")
    where = [*places(5), *places(5, of_set=1)]
    targets = [np.diff(pack.targets).sum() for pack in packs]
    batch = make_batch(packs, tiny_recipe("qwen3", sets=2), where)
    assert batch.groups.tolist() == [0] * targets[0] + [1] * targets[1]
    assert batch.num_groups == 2

    batch = make_batch(packs, tiny_recipe("qwen3", sets=2, by="source"), where)
    per_talk = [np.diff(pack.targets[i : i + 2]).sum() for pack in packs for i in (0, 2)]
    # talk(seed) is of source seed % 2; the second set's sources come after those of the first.
    assert batch.groups.tolist() == np.repeat([0, 1, 2, 3], per_talk).tolist()
    assert batch.num_groups == 4
    assert batch.groups.dtype == torch.int64


def test_images_are_decoded_by_the_geometry_of_their_set() -> None:
    recipe = tiny_recipe("qwen2_vl", sets=2)
    small = replace(TINY_VISION, max_pixels=16 * 16)
    recipe = replace(recipe, sets=(recipe.sets[0], replace(recipe.sets[1], vision=small)))
    pack, shrunk = make_pack([talk(1, 12, [picture(1, 32, 24)])]), with_vision(small)
    batch = make_batch([pack, shrunk], recipe, [*places(3), *places(7, of_set=1)])
    assert batch.vision is not None
    assert batch.vision.grid_thw.tolist() == [[1, 6, 8], [1, 2, 4]]
    alone = joined([shrunk], replace(recipe, sets=recipe.sets[1:])).vision
    assert alone is not None
    assert torch.equal(batch.vision.patches[48:], alone.patches)
    assert batch.packs == ("set 0, pack 3", "set 1, pack 7")


def with_vision(vision: Vision) -> Pack:
    """A pack that shows a picture of 32 x 24 pixels, of which 2 x 1 tokens are left by this geometry."""
    one = talk(1, 12, [picture(1, 16, 8)])
    data = picture(1, 32, 24)
    pack = make_pack([one])
    media = replace(pack.media[0], size=(32, 24), grid_thw=image_grid(24, 32, vision), bytes=len(data))
    return replace(pack, media=(media,), media_bytes=data)


def test_a_pass_that_does_not_count_is_the_same_with_weight_and_digest_of_0() -> None:
    packs, recipe = two_packs("qwen2_5_vl"), tiny_recipe("qwen2_5_vl", "mask")
    packs[1] = with_media_bytes(packs[1], 1, b"no picture")
    full, idle = (make_batch(packs, recipe, places(3, 4), counts) for counts in (True, False))
    assert full.weight > 0
    assert full.masked
    assert not idle.weights.any()
    assert (idle.weight, idle.digest, idle.masked) == (0, 0, ())
    again = replace(idle, weights=full.weights, weight=full.weight, digest=full.digest, masked=full.masked)
    assert_same_batch(again, full)


def assert_same_batch(found: Batch, expected: Batch) -> None:
    """Equal in everything, to the bit."""
    assert pickle.dumps(plain(found)) == pickle.dumps(plain(expected))


def plain(value: object) -> object:
    """Tensors as nested lists."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return {key: plain(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def test_the_digest_sums_the_mixed_hashes_of_the_packs_whatever_their_order() -> None:
    packs = [make_pack([talk(i, 8)]) for i in range(3)]
    hashes = [2**64 - 1, 1234567890123456789, 7]
    where = [place._replace(xxh3=xxh3) for place, xxh3 in zip(places(0, 1, 2), hashes, strict=True)]
    batch = make_batch(packs, tiny_recipe("qwen3"), where)
    assert batch.digest == sum(int(mix64(np.array([h], np.uint64))[0]) for h in hashes) % 2**64
    assert batch.digest == make_batch(packs[::-1], tiny_recipe("qwen3"), where[::-1]).digest
    assert batch.digest == 8432534970126985084  # by fmix64 in Python integers
