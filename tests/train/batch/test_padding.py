"""Batches padded to a run's shapes: they all fit, few shapes come out, and nothing that is trained changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lmms.configs.contract.pack import Pack
from lmms.configs.errors import TrainError
from lmms.train.batch.batch import Batch, make_batch
from lmms.train.batch.padding import pad_batch
from lmms.train.batch.shapes import Shapes
from tests.kit.model.models import (
    AUDIOS,
    VISION_FAMILIES,
    joined,
    make_pack,
    picture,
    places,
    talk,
    tiny_model,
    tiny_recipe,
)
from tests.kit.model.padding import SEQ_LEN, padding_recipe
from tests.kit.model.sounds import noise_sound
from tests.kit.passes import assert_same_gradients, gradients

PADDED = ("qwen3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2_audio", "qwen2_5_omni_thinker")


def packs_of(family: str) -> list[Pack]:
    """One long conversation, many short ones, and in vision families pictures of every kind; two packs are full."""
    sizes = [(56, 40), (8, 8), (12, 60), (120, 30), (24, 16), (64, 64)]
    images = [picture(i, *size) for i, size in enumerate(sizes)] if family in VISION_FAMILIES else []
    sounds = [noise_sound(i, samples, AUDIOS[family]) for i, samples in enumerate(SAMPLES)] if family in AUDIOS else []
    packs = [
        make_pack([talk(0, 10, sounds[:1]), talk(1, 12, images[:2]), talk(2, 9, images[2:4])]),
        make_pack([talk(3, SEQ_LEN - 2)]),
        make_pack([talk(i, 5) for i in range(20)]),
        make_pack([talk(4, 30, images[3:]), talk(5, 7, sounds[1:])]),
        make_pack([talk(6, 100), talk(7, 50)]),
        make_pack([talk(8, 40, images), *(talk(9 + i, 4) for i in range(3))]),
    ]
    filled = SEQ_LEN - len(packs[2].input_ids)
    return [*packs, make_pack([*(talk(i, 5) for i in range(20)), talk(30, filled - 2)])]


SAMPLES = (16000, 801, 2560, 5000)


def shape_of(batch: Batch) -> tuple[object, ...]:
    """All of a batch that a compiled block would see."""
    vision: dict[str, object] = {}
    if batch.vision is not None:
        vision = {k: v.shape if isinstance(v, Tensor) else v for k, v in batch.vision.tower.items()}
        vision["patches"] = batch.vision.patches.shape
    if batch.sounds is not None:
        names = ("valid_indices", "cu_seqlens", "max_seqlen")
        vision |= {f"sound {k}": v.shape if isinstance(v, Tensor) else v for k, v in batch.sounds.tower.items() if k in names}
    return batch.input_ids.shape, batch.cu_seqlens.shape, batch.max_length, tuple(vision.items())


@pytest.mark.parametrize("family", PADDED)
def test_padding_changes_no_loss_and_no_gradient(family: str) -> None:
    packs = packs_of(family)
    recipe = padding_recipe(family, packs)
    model = tiny_model(family)
    for pack in packs:
        results = []
        plain = joined([pack], recipe)
        padded = pad_batch(plain, recipe)
        assert padded.input_ids.shape == (1, SEQ_LEN)
        for batch in (plain, padded):
            model.zero_grad()
            loss, by_group = model(batch, family in VISION_FAMILIES, step_has_sounds=family in AUDIOS)
            loss.backward()
            results.append((loss.detach(), by_group, gradients(model)))
        (loss, groups, expected), (loss_padded, groups_padded, found) = results
        torch.testing.assert_close(loss_padded, loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(groups_padded, groups, rtol=1e-5, atol=0)
        assert_same_gradients(found, expected)


@pytest.mark.parametrize("micro_packs", [1, 2, 3])
@pytest.mark.parametrize("family", PADDED)
def test_every_batch_fits_and_the_shapes_are_few(family: str, micro_packs: int) -> None:
    packs = packs_of(family)
    recipe = padding_recipe(family, packs, micro_packs)
    assert recipe.shapes is not None
    rng = np.random.default_rng(0)
    shapes, lengths = set(), set()
    for _ in range(60):
        numbers = rng.integers(0, len(packs), rng.integers(1, micro_packs + 1))
        batch = pad_batch(make_batch([packs[i] for i in numbers], recipe, places(*numbers)), recipe)
        shapes.add(shape_of(batch))
        lengths.add((len(batch.cu_seqlens) - 1, batch.max_length))
        assert batch.input_ids.shape[1] == batch.cu_seqlens[-1] == micro_packs * SEQ_LEN
        assert int(batch.cu_seqlens.diff().max()) <= batch.max_length
        assert batch.cu_seqlens.dtype == torch.int32
        if batch.vision is not None:
            tower = batch.vision.tower
            assert isinstance(tower["cu_seqlens"], Tensor)
            assert tower["cu_seqlens"][-1] == len(batch.vision.patches)
            assert len(batch.vision.patches) % recipe.shapes.patches == 0
        if batch.sounds is not None:
            tower = batch.sounds.tower
            assert isinstance(tower["cu_seqlens"], Tensor)
            assert isinstance(tower["valid_indices"], Tensor)
            assert tower["cu_seqlens"][-1] == len(tower["valid_indices"])
            assert int(tower["cu_seqlens"].diff().max()) <= tower["max_seqlen"]
    assert lengths <= set(recipe.shapes.conversations)
    assert len(recipe.shapes.conversations) <= 4
    # 8 numbers of patches x 4 of dense windows, of which those occur that the images have
    assert len({shape[3] for shape in shapes}) <= (1 if family == "qwen3" else 12 if family not in AUDIOS else 30)


def test_many_short_conversations_and_one_long_one_have_shapes_of_their_own() -> None:
    shapes = padding_recipe("qwen3", packs_of("qwen3")).shapes
    assert shapes is not None
    (few, long), *_ = sorted(shapes.conversations, key=lambda pair: -pair[1])
    many, short = max(shapes.conversations)
    assert long >= SEQ_LEN
    assert few < many
    assert short < long


def test_without_shapes_a_batch_stays_as_it_is() -> None:
    batch = joined(packs_of("qwen3")[:1], tiny_recipe("qwen3"))
    assert pad_batch(batch, tiny_recipe("qwen3")) is batch


@pytest.mark.parametrize(
    ("change", "named"),
    [({"tokens": 100}, "tokens in 1 conv"), ({"conversations": ((30, 100),)}, "up to 320"), ({"images": 3}, "images")],
)
def test_a_batch_that_the_sidecar_does_not_know_is_an_error(change: dict[str, object], named: str) -> None:
    packs = packs_of("qwen3_vl")
    recipe = padding_recipe("qwen3_vl", packs)
    assert isinstance(recipe.shapes, Shapes)
    wrong = replace(recipe, shapes=replace(recipe.shapes, **change))  # type: ignore[arg-type]
    with pytest.raises(TrainError, match=f"pack 0: .*{named}.*rebuild"):
        pad_batch(joined([packs[1 if "images" not in change else 0]], wrong), wrong)
