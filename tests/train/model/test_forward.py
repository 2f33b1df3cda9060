"""A pack through the trained model equals its conversations, one by one, through transformers' unchanged forward."""

import re
from collections.abc import Iterator, Sequence
from io import BytesIO

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchvision.transforms.functional import pil_to_tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PreTrainedModel,
    Qwen2Config,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from lmms.configs.contract.families import FAMILIES as FAMILY_FACTS
from lmms.configs.contract.media.sounds import samples_of
from lmms.configs.errors import ModelError, TrainError
from lmms.train.batch.batch import Batch
from lmms.train.model import names
from lmms.train.model.build import blocks, build_model, init_random, materialize, reset_buffers
from lmms.train.model.forward import TrainModel, last_hidden_state
from lmms.train.parallel.sharding import shard_model
from lmms.train.parallel.world import start_world, stop_world
from tests.kit.model.clips import Clip, noise_clip
from tests.kit.model.models import (
    AUDIOS,
    FAMILIES,
    IMAGE_TOKEN,
    SOUND_FAMILIES,
    TINY_VISION,
    VIDEO_TOKEN,
    VISION_FAMILIES,
    Talk,
    joined,
    make_pack,
    part_of,
    picture,
    talk,
    tiny_config,
    tiny_model,
    tiny_recipe,
)
from tests.kit.model.sounds import Noise, noise_sound
from tests.kit.passes import assert_same_gradients, count_forward_calls, gradients

CPU = torch.device("cpu")


def talks_of(family: str) -> list[Talk]:
    """Four conversations; a vision family shows images in two (large, small, upright, wide) and videos in two, a family
    that hears has sounds in three, whole chunks and broken chunks."""
    if family not in VISION_FAMILIES + SOUND_FAMILIES:
        return [talk(0, 10), talk(1, 12), talk(2, 9), talk(3, 7)]
    has_times = family == "qwen3_vl"
    moving = noise_clip(5, 5, 40, 24, step=0.7, has_times=has_times)
    short = noise_clip(6, 2, 16, 16, step=2.0, has_times=has_times)
    media = [[moving], [picture(1, 56, 40), picture(2, 8, 8)], [picture(3, 12, 60), short, picture(4, 120, 30), moving]]
    if family not in VISION_FAMILIES:
        media = [[], [], []]
    if family in AUDIOS:
        sounds = [noise_sound(seed, samples, AUDIOS[family]) for seed, samples in enumerate(SAMPLES)]
        media = [
            [sounds[0], *media[0]],
            [*media[1], *sounds[1:3]],
            [media[2][0], *sounds[3:], *media[2][1:]] if media[2] else sounds[3:],
        ]
    return [talk(0, 10, media[0]), talk(1, 12, media[1]), talk(2, 9, media[2]), talk(3, 7)]


SAMPLES = (2560, 5 * 160 + 1, 3 * 160, 16000, 15999, 9 * 160)
"""Lengths of sounds: whole chunks; a chunk of one frame at the end; the shortest; as long as can be."""


def towers_of(family: str) -> dict[str, bool]:
    """Which towers a pass of this family's talks runs."""
    return {"step_has_images": family in VISION_FAMILIES, "step_has_sounds": family in SOUND_FAMILIES}


def batch_of(talks: Sequence[Talk], family: str) -> Batch:
    return joined([make_pack(talks)], tiny_recipe(family))


def unchanged_model(model: TrainModel, family: str) -> PreTrainedModel:
    """transformers' model as it comes, with the weights of `model`."""
    auto = AutoModelForImageTextToText if family in VISION_FAMILIES else AutoModelForCausalLM
    auto = AutoModelForMultimodalLM if family in SOUND_FAMILIES else auto
    hf = auto.from_config(tiny_config(family), attn_implementation="eager")
    hf.load_state_dict(model.hf.state_dict())
    return hf


def logits_of(hf: PreTrainedModel, one: Talk, family: str) -> Tensor:
    """[tokens, vocab] of one conversation, all inputs made by transformers' own processor."""
    ids = torch.tensor([one.ids])
    images = {}
    stills = [image for image in one.images if isinstance(image, bytes)]
    if stills:
        size = {"shortest_edge": TINY_VISION.min_pixels, "longest_edge": TINY_VISION.max_pixels}
        processor = Qwen2VLImageProcessorPil(
            patch_size=TINY_VISION.patch_size,
            merge_size=TINY_VISION.merge_size,
            temporal_patch_size=TINY_VISION.temporal_patch_size,
            size=size,
            image_mean=TINY_VISION.image_mean,
            image_std=TINY_VISION.image_std,
        )
        images = dict(processor([Image.open(BytesIO(data)) for data in stills], return_tensors="pt"))
    images |= videos_of(one, family)
    if family in SOUND_FAMILIES:
        images |= {"attention_mask": torch.ones_like(ids), **sounds_of(one, family)}
    elif one.images:
        images["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int() + 2 * (ids == VIDEO_TOKEN).int()
    logits: Tensor = hf(input_ids=ids, use_cache=False, **images).logits[0]
    return logits


def videos_of(one: Talk, family: str) -> dict[str, Tensor]:
    """The videos of a conversation as the model takes them, by transformers' own processor."""
    clips = [image for image in one.images if isinstance(image, Clip)]
    if not clips:
        return {}
    processor = Qwen2VLVideoProcessor(
        do_resize=False,
        patch_size=TINY_VISION.patch_size,
        merge_size=TINY_VISION.merge_size,
        temporal_patch_size=TINY_VISION.temporal_patch_size,
        image_mean=TINY_VISION.image_mean,
        image_std=TINY_VISION.image_std,
    )
    frames = [torch.stack([pil_to_tensor(Image.open(BytesIO(f))) for f in clip.frames]) for clip in clips]
    made = dict(processor(frames, return_tensors="pt"))
    if family == "qwen2_5_vl":
        made["second_per_grid_ts"] = torch.tensor([clip.step for clip in clips])
    if family in SOUND_FAMILIES:
        made["video_second_per_grid"] = torch.tensor([clip.step for clip in clips])
    return made


def sounds_of(one: Talk, family: str) -> dict[str, Tensor]:
    """The sounds of a conversation as the model takes them, by transformers' own feature extractor."""
    sounds = [sound for sound in one.images if isinstance(sound, Noise)]
    if not sounds:
        return {}
    audio = AUDIOS[family]
    extractor = WhisperFeatureExtractor(
        feature_size=audio.mel_bins, chunk_length=audio.longest // audio.sample_rate, return_attention_mask=True
    )
    made = extractor(
        [samples_of(sound.data) for sound in sounds],
        sampling_rate=audio.sample_rate,
        return_attention_mask=True,
        padding="max_length",
        return_tensors="pt",
    )
    return {"input_features": made["input_features"], "feature_attention_mask": made["attention_mask"]}


def loss_of(hf: PreTrainedModel, one: Talk, family: str) -> Tensor:
    logits = logits_of(hf, one, family)
    rows = torch.tensor([i - 1 for start, end, _ in one.targets for i in range(start, end)])
    weights = torch.tensor([w for start, end, w in one.targets for _ in range(start, end)])
    losses = F.cross_entropy(logits[rows], torch.tensor(one.ids)[rows + 1], reduction="none")
    return (weights * losses).sum()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pack_has_the_loss_and_gradients_of_its_conversations_alone(family: str) -> None:
    model = tiny_model(family)
    talks = talks_of(family)
    loss, by_group = model(batch_of(talks, family), **towers_of(family))
    loss.backward()

    hf = unchanged_model(model, family)
    expected = torch.stack([loss_of(hf, one, family) for one in talks]).sum()
    expected.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert loss.dtype == torch.float32
    weight = sum(w * (end - start) for one in talks for start, end, w in one.targets)
    torch.testing.assert_close(by_group, torch.tensor([[float(expected.detach()), weight]]).double(), rtol=1e-5, atol=0)
    assert_same_gradients(gradients(model), gradients(hf))
    assert len(gradients(model)) == sum(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pack_has_the_logits_of_its_conversations_alone(family: str) -> None:
    model = tiny_model(family)
    talks = talks_of(family)
    hf = unchanged_model(model, family)
    with torch.no_grad():
        hidden = last_hidden_state(model.hf, batch_of(talks, family), **towers_of(family))
        expected = torch.cat([logits_of(hf, one, family) for one in talks])
        torch.testing.assert_close(model.hf.lm_head(hidden[0]), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_does_not_move_when_its_neighbours_change(family: str) -> None:
    model = tiny_model(family)
    talks = talks_of(family)
    images = [picture(9, 12, 60), picture(8, 120, 30)] if family in VISION_FAMILIES else []
    moving = [noise_clip(7, 5, 40, 24, has_times=family == "qwen3_vl")] if family in VISION_FAMILIES else []
    heard = (
        [noise_sound(9, SAMPLES[0], AUDIOS[family]), noise_sound(8, 1700, AUDIOS[family])] if family in AUDIOS else []
    )
    changed = [talk(10, 10, [*moving, *heard[:1]]), talks[1], talk(12, 9, [*heard[1:], *images]), talk(13, 7)]
    start, end = len(talks[0].ids), len(talks[0].ids) + len(talks[1].ids)
    with torch.no_grad():
        before, after = (
            last_hidden_state(model.hf, batch_of(some, family), **towers_of(family))[0] for some in (talks, changed)
        )
    assert torch.equal(before[start:end], after[start:end])
    assert not torch.allclose(before[:start], after[:start])


@pytest.mark.parametrize("family", FAMILIES)
def test_packs_of_one_forward_pass_add_up(family: str) -> None:
    model = tiny_model(family)
    talks = talks_of(family)
    packs = [make_pack(talks[:1]), make_pack(talks[1:3]), make_pack(talks[3:])]
    recipe = tiny_recipe(family)
    model(joined(packs, recipe), **towers_of(family))[0].backward()
    together = gradients(model)
    model.zero_grad()
    for pack in packs:
        model(joined([pack], recipe), **towers_of(family))[0].backward()
    assert_same_gradients(gradients(model), together)


@pytest.mark.parametrize("family", VISION_FAMILIES + SOUND_FAMILIES[-1:])
def test_a_rank_without_media_runs_the_towers_on_dummies_that_change_nothing(family: str) -> None:
    model = tiny_model(family)
    batch = batch_of([talk(0, 10), talk(3, 7)], family)
    alone, _ = model(batch, False)
    alone.backward()
    without = gradients(model)
    model.zero_grad()
    together, _ = model(batch, **towers_of(family))
    together.backward()
    with_dummy = gradients(model)

    assert torch.equal(alone, together)
    assert not any("visual" in name or "audio" in name for name in without)
    assert len(with_dummy) == sum(parameter.requires_grad for parameter in model.parameters())
    for name, gradient in with_dummy.items():
        assert torch.equal(gradient, without.get(name, torch.zeros_like(gradient)))


def test_images_in_a_step_that_was_said_to_have_none_are_an_error() -> None:
    with pytest.raises(TrainError, match="sidecar"):
        tiny_model("qwen2_vl")(batch_of(talks_of("qwen2_vl"), "qwen2_vl"), False)


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputing_blocks_in_backward_changes_no_gradient(family: str) -> None:
    batch = batch_of(talks_of(family), family)
    results = []
    for recompute in ("none", "elementwise", "full"):
        model = tiny_model(family, recompute=recompute)
        calls = count_forward_calls(model)
        loss, _ = model(batch, **towers_of(family))
        loss.backward()
        results.append((loss, gradients(model), len(calls)))
    (loss, kept, once), *others = results
    for again, recomputed, twice in others:
        assert torch.equal(loss, again)
        assert all(torch.equal(recomputed[name], gradient) for name, gradient in kept.items())
        assert twice == 2 * once


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_pass_never_waits_for_the_device(family: str) -> None:
    """Fake CUDA tensors have shapes and no values: reading one on the host raises."""
    batch = batch_of(talks_of(family), family)
    model = build_model(tiny_config(family), "none").bfloat16()
    with FakeTensorMode(allow_non_fake_inputs=True):
        device = torch.device("cuda", 0)
        model.to_empty(device=device)
        loss, by_group = model(batch.to(device), **towers_of(family))
    assert loss.device == by_group.device == device
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_model_and_its_blocks(family: str) -> None:
    config = tiny_config(family)
    model = build_model(config, "full")
    assert config.to_dict() == tiny_config(family).to_dict()
    assert config._attn_implementation is None
    assert all(parameter.is_meta for parameter in model.parameters())
    parts: dict[str, set[str]] = {}
    for name, _ in model.named_parameters():
        parts.setdefault(part_of(family, name), set()).add(name)
        assert names.part_of(model, name) == names.part_of(model, name.removeprefix("hf.")) == part_of(family, name)
    assert parts.keys() == set(FAMILY_FACTS[family].parts)
    assert all(re.search(r"merger|audio_tower\.proj|projector", name) for name in parts.get("aligner", ()))
    assert all("visual" in name and "merger" not in name for name in parts.get("vision", ()))
    assert all("audio_tower" in name and ".proj." not in name for name in parts.get("audio", ()))
    of_module = {id(module): name for name, module in model.named_modules()}
    towers = ["visual"] * 4 * (family in VISION_FAMILIES) + ["audio_tower"] * 2 * (family in SOUND_FAMILIES)
    found = [re.search("visual|audio_tower", of_module[id(block)]) for block in blocks(model)]
    assert [tower[0] if tower else "" for tower in found] == [*towers, "", "", ""]


@pytest.mark.parametrize("family", FAMILIES)
def test_buffers_after_materialize_are_those_of_a_new_model(family: str) -> None:
    model = build_model(tiny_config(family), "none")
    materialize(model, CPU)
    fresh = dict(unchanged_model(model, family).named_buffers())
    found = {name.removeprefix("hf."): buffer for name, buffer in model.named_buffers()}
    assert found.keys() == fresh.keys()
    assert len(fresh) > 0
    for buffer in found.values():
        assert not buffer.is_meta
        buffer.fill_(float("nan"))
    reset_buffers(model)
    assert all(torch.equal(found[name], buffer) for name, buffer in fresh.items())


@pytest.mark.parametrize("family", ["qwen2", "qwen3_vl"])
def test_tied_embeddings_stay_one_parameter(family: str) -> None:
    model = tiny_model(family, tied=True)
    assert model.hf.lm_head.weight is model.hf.get_input_embeddings().weight
    assert not [name for name, _ in model.named_parameters() if "lm_head" in name]
    model(batch_of(talks_of(family), family), **towers_of(family))[0].backward()
    tied = model.hf.lm_head.weight.grad

    untied = tiny_model(family)
    untied.hf.load_state_dict(model.hf.state_dict())
    untied(batch_of(talks_of(family), family), **towers_of(family))[0].backward()
    expected = untied.hf.lm_head.weight.grad + untied.hf.get_input_embeddings().weight.grad
    torch.testing.assert_close(tied, expected, rtol=1e-5, atol=1e-5)


def test_random_weights_follow_the_seed_and_the_rule_of_transformers() -> None:
    first, same, other = (tiny_model("qwen2_5_vl", seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(same[name], parameter) for name, parameter in first.items())
    head = "hf.lm_head.weight"
    assert not torch.equal(other[head], first[head])
    std = tiny_config("qwen2_5_vl").get_text_config().initializer_range
    assert float(first[head].std()) == pytest.approx(std, rel=0.1)
    assert all((first[name] == 1).all() for name in first if name.endswith("norm.weight"))
    assert all((first[name] == 0).all() for name in first if name.endswith(".bias"))


@pytest.mark.parametrize("family", ["qwen3", "qwen2_5_vl"])
def test_a_sharded_model_gathers_and_frees_around_backward_and_has_the_same_gradients(family: str) -> None:
    """FSDP2 hooks itself onto what forward returns: into a tuple, of which one tensor has no gradient."""
    world = start_world("cpu")
    try:
        plain, sharded = tiny_model(family), build_model(tiny_config(family), "none")
        # With offload, which does nothing on a CPU: one rank alone shards nothing else.
        shard_model(sharded, blocks(sharded), world, torch.float32, offload=True)
        materialize(sharded, CPU)
        init_random(sharded, 0)
        for model in (plain, sharded):
            for _ in range(2):
                model(batch_of(talks_of(family), family), **towers_of(family))[0].backward()
        assert_same_gradients(
            {name: gradient.full_tensor() for name, gradient in gradients(sharded).items()}, gradients(plain)
        )
        assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    finally:
        stop_world()


@pytest.fixture
def second_of_two_ranks() -> Iterator[None]:
    """A group of two in which only this rank exists: for what needs no word from the other."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("tied", [True, False])
def test_a_rank_draws_its_rows_of_the_whole_model(second_of_two_ranks: None, tied: bool) -> None:
    mesh = init_device_mesh("cpu", (2,))
    whole = dict(tiny_model("qwen3_vl", seed=3, tied=tied).named_parameters())
    model = build_model(tiny_config("qwen3_vl", tied), "none")
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    materialize(model, CPU)
    init_random(model, 3)

    shards = {name: parameter.to_local() for name, parameter in model.named_parameters()}
    assert shards.keys() == whole.keys()
    for name, parameter in whole.items():
        assert torch.equal(shards[name], parameter.chunk(2)[1] if len(parameter) > 1 else parameter[:0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_sliding_window": True, "layer_types": ["full_attention"] * 2 + ["sliding_attention"]}, "sliding"),
        ({"attention_dropout": 0.1}, "dropout"),
    ],
)
def test_what_the_attention_does_not_do_is_refused(change: dict[str, object], named: str) -> None:
    config = Qwen2Config(**{**tiny_config("qwen2").to_dict(), **change})
    with pytest.raises(ModelError, match=named):
        build_model(config, "none")


@pytest.mark.parametrize(
    ("family", "frozen"),
    [
        *(("qwen3_vl", part) for part in ("llm", "vision", "aligner")),
        *(("qwen2_5_omni_thinker", part) for part in ("audio", "vision")),
        ("qwen2_audio", "audio"),
    ],
)
def test_freezing_a_part_leaves_the_gradients_of_the_others(family: str, frozen: str) -> None:
    batch = batch_of(talks_of(family), family)
    whole, model = tiny_model(family), tiny_model(family, recompute="full", train={"default": "full", frozen: "frozen"})
    for some in (whole, model):
        some(batch, **towers_of(family))[0].backward()
    expected = {name: gradient for name, gradient in gradients(whole).items() if part_of(family, name) != frozen}
    assert_same_gradients(gradients(model), expected)
