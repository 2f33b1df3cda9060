"""Which shards fit which model, and how packs and groups are named."""

from dataclasses import replace

import numpy as np
import pytest

from lmms.configs.contract.manifest import Manifest
from lmms.configs.errors import ModelError
from lmms.train.batch.recipe import make_recipe
from tests.kit.model.models import (
    FAMILIES,
    TINY_VISION,
    VISION_FAMILIES,
    make_pack,
    manifest_of,
    places,
    talk,
    tiny_config,
    tiny_recipe,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recipe_follows_from_manifest_and_config(family: str) -> None:
    recipe = make_recipe([manifest_of(family)] * 2, tiny_config(family), "stop")
    expected = tiny_recipe(family, sets=2)
    merge_size = 2 if family in VISION_FAMILIES else 1
    limits = replace(expected.sets[0].limits, merge_size=merge_size)
    assert recipe == replace(expected, sets=(replace(expected.sets[0], limits=limits),) * 2)


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
    for manifests in ([manifest], [manifest_of("qwen2_5_vl"), manifest]):
        with pytest.raises(ModelError, match=f"^{name} is"):
            make_recipe(manifests, tiny_config("qwen2_5_vl"), "stop")


def test_sets_may_differ_in_areas_and_limits_but_not_in_how_pixels_are_normalised() -> None:
    first = manifest_of("qwen2_5_vl")
    other = replace(first, seq_len=64, vision=replace(TINY_VISION, min_pixels=16, max_pixels=256))
    sets = make_recipe([first, other], tiny_config("qwen2_5_vl"), "stop").sets
    assert [one.vision for one in sets] == [first.vision, other.vision]
    assert [one.limits.seq_len for one in sets] == [4096, 64]
    for name in ("image_mean", "image_std"):
        bad = replace(first, vision=replace(TINY_VISION, **{name: (0.1, 0.2, 0.3)}))
        with pytest.raises(ModelError, match=rf"^{name} is \(0.1, 0.2, 0.3\) in set 1, .* in set 0; build all sets"):
            make_recipe([first, bad], tiny_config("qwen2_5_vl"), "stop")


def test_groups_are_sets_or_the_sources_of_all_sets() -> None:
    one, two = tiny_recipe("qwen3"), tiny_recipe("qwen3", sets=2)
    assert (one.num_groups, one.group_names) == (1, ("set 0",))
    assert (two.num_groups, two.group_names) == (2, ("set 0", "set 1"))
    one, two = (replace(recipe, by="source") for recipe in (one, two))
    names = ("first.jsonl", "second.jsonl")
    assert (one.num_groups, one.group_names) == (2, names)
    assert (two.num_groups, two.group_names) == (4, tuple(f"set {k}, {name}" for k in range(2) for name in names))
    assert (one.group_sets.tolist(), two.group_sets.tolist()) == ([0, 0], [0, 0, 1, 1])
    assert replace(two, by="set").group_sets.tolist() == [0, 1]
    pack = make_pack([talk(1, 4), talk(2, 4), talk(3, 4)])
    (place,) = places(9, of_set=1)
    assert two.groups(pack, place).tolist() == [3, 2, 3]
    assert replace(two, by="set").groups(pack, place).tolist() == [1, 1, 1]
    assert two.groups(pack, place).dtype == np.int64


def test_packs_are_named_with_their_set_where_there_are_several() -> None:
    (place,) = places(9, of_set=1)
    assert tiny_recipe("qwen3", sets=2).name(place) == "set 1, pack 9"
    assert tiny_recipe("qwen3").name(place) == "pack 9"
