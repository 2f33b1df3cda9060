"""The parts of each family's models: which modules they are, and in which order they are computed."""

from functools import partial

import pytest

from lmms.configs.errors import ModelError
from lmms.train.families import family_of, images_of, sounds_of
from lmms.train.families.family import Tower
from tests.kit.model.models import (
    AUDIOS,
    FAMILIES,
    SOUND_FAMILIES,
    VISION_FAMILIES,
    joined,
    make_pack,
    picture,
    talk,
    tiny_config,
    tiny_model,
    tiny_recipe,
)
from tests.kit.model.sounds import noise_sound


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_placed_in_the_order_in_which_a_forward_pass_reaches_them(family: str) -> None:
    shape, model = family_of(family), tiny_model(family)
    tops = {top: part for part in shape.parts for top in part.modules}
    reached: dict[str, list[tuple[int, int]]] = {}

    def note(name: str, *_: object) -> None:
        part = shape.part_of(name)
        # The mergers of a tower run one after the other; a projection is a module without others.
        top = max((top for top in tops if tops[top] is part and f"{name}.".startswith(f"{top}.")), key=len)
        merger = name.split(".")[3] if top.endswith("_list") else ""
        reached.setdefault(f"{top}.{merger}", []).append(part.point(name))

    for name, module in model.hf.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_hook(partial(note, name))
    images = [picture(1)] if family in VISION_FAMILIES else []
    sounds = [noise_sound(1, 8000, AUDIOS[family])] if family in SOUND_FAMILIES else []
    batch = joined([make_pack([talk(1, 9, [*images, *sounds])])], tiny_recipe(family))
    model(batch, bool(images), step_has_sounds=bool(sounds))
    assert len(reached) == 1 + (4 if family == "qwen3_vl" else 2 * len(images)) + 2 * len(sounds)
    for places in reached.values():
        assert list(dict.fromkeys(places)) == sorted(set(places))


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_the_tower_is_what_the_config_says(family: str) -> None:
    expected = {
        "qwen2_vl": Tower(patch_size=4, merge_size=2),
        "qwen2_5_vl": Tower(patch_size=4, merge_size=2, window_size=16, windowed=(0, 2), tokens_per_second=4),
        "qwen3_vl": Tower(patch_size=4, merge_size=2, position_side=6),
        "qwen2_5_omni_thinker": Tower(
            patch_size=4, merge_size=2, window_size=16, windowed=(0, 2), tokens_per_second=25, time_takes_room=True
        ),
    }
    assert images_of(family).tower(tiny_config(family)) == expected[family]


def test_a_model_takes_no_media_of_a_kind_that_it_does_not_read() -> None:
    with pytest.raises(ModelError, match="'qwen2_audio' sees nothing"):
        images_of("qwen2_audio")
    with pytest.raises(ModelError, match="'qwen2_5_vl' hears nothing"):
        sounds_of("qwen2_5_vl")


def test_a_model_of_no_family_is_refused() -> None:
    with pytest.raises(ModelError, match="'llama' cannot be trained; expected one of qwen2, "):
        family_of("llama")


def test_a_module_of_no_part_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"model\.audio\.conv belongs to no part .* below model\.visual, "):
        family_of("qwen3_vl").part_of("model.audio.conv")


def test_a_layer_that_no_stage_knows_is_an_error() -> None:
    """A new version of transformers may have one; costs would be wrong without a word."""
    part = family_of("qwen3").parts[-1]
    assert part.point("model.layers.3.self_attn.q_proj.weight") < part.point("model.layers.3.self_attn.o_proj.weight")
    with pytest.raises(ModelError, match=r"layers\.3\.linear_attn\.in_proj: .* in the part llm"):
        part.point("model.layers.3.linear_attn.in_proj")


def test_a_deeper_module_of_another_part_wins() -> None:
    shape = family_of("qwen3_vl")
    names = ("blocks.0.attn.qkv", "merger.norm", "deepstack_merger_list.1.norm", "merger_of_another_name")
    assert [shape.part_of(f"model.visual.{name}").name for name in names] == ["vision", "aligner", "aligner", "vision"]
