"""Compiled blocks: the numbers of plain ones, one graph a kind of block and shape, and none after the first steps."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.exc import RecompileError
from torch.distributed.tensor import DTensor

from lmms.configs.contract.pack import Pack
from lmms.configs.settings.train import How
from lmms.train.batch.batch import Batch, make_batch
from lmms.train.batch.padding import pad_batch
from lmms.train.batch.recipe import Recipe
from lmms.train.model.build import blocks, build_model, init_random, materialize
from lmms.train.model.forward import TrainModel
from lmms.train.model.kernels import compile_blocks
from lmms.train.model.offload import copy_at_once, offload_blocks
from lmms.train.model.reference import documents_attention, reference_attention
from lmms.train.parallel.sharding import shard_model
from lmms.train.parallel.world import start_world, stop_world
from lmms.train.run import train
from tests.kit.live import kept_bytes, saved_bytes
from tests.kit.model.compiled import compiled_graphs, no_recompiles
from tests.kit.model.models import AUDIOS, VISION_FAMILIES, make_pack, picture, places, talk, tiny_config, tiny_model
from tests.kit.model.padding import padding_recipe
from tests.kit.model.sounds import noise_sound
from tests.kit.offload import offloaded
from tests.kit.passes import assert_same_gradients, gradients
from tests.kit.ranks import on_ranks
from tests.kit.runs import read_metrics, run_config, silent, write_run

BACKEND = "aot_eager"
"""Traces and partitions as inductor does, and writes no kernels, which takes a minute for the towers."""

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
# Dynamo keeps it from being shown, which is too late where warnings are errors.


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def five_packs(family: str) -> list[Pack]:
    """Five packs of other lengths, numbers and sizes; the last two go beyond what the first three show."""
    has_images = family in VISION_FAMILIES
    sizes = [[(56, 40)], [(8, 8), (24, 16)], [(12, 60)], [(40, 48)], [(16, 8), (8, 16), (16, 16)]]
    lengths = (16_000, 801, 4000, 9000, 2560) if family in AUDIOS else ()
    sounds = [noise_sound(i, samples, AUDIOS[family]) for i, samples in enumerate(lengths)]
    rng = np.random.default_rng(1)
    return [
        make_pack(
            [
                talk(10 * i, 10 + i, [picture(i, *size) for size in sizes[i]] if has_images else sounds[i : i + 1]),
                *(talk(10 * i + k, int(rng.integers(4, 20))) for k in range(1, 3 + i)),
            ]
        )
        for i in range(5)
    ]


def padded(family: str) -> list[Batch]:
    packs = five_packs(family)
    recipe = one_shape(padding_recipe(family, packs))
    return [pad_batch(make_batch([pack], recipe, places(i)), recipe) for i, pack in enumerate(packs)]


def one_shape(recipe: Recipe) -> Recipe:
    """One pair and one number of patches, so that whatever is compiled again is a fault."""
    assert recipe.shapes is not None
    most, longest = (max(pair[i] for pair in recipe.shapes.conversations) for i in (0, 1))
    shapes = replace(
        recipe.shapes,
        conversations=((most, longest),),
        patches=8 * recipe.shapes.patches,
        images=recipe.shapes.images + 40,
        positions=8 * recipe.shapes.positions,
        chunks=recipe.shapes.chunks + 40,
    )
    return replace(recipe, shapes=shapes)


def built(family: str, recompute: str) -> TrainModel:
    model = tiny_model(family, recompute=recompute)
    compile_blocks(blocks(model), BACKEND)
    return model


@pytest.mark.parametrize(
    ("family", "recompute"),
    [
        *(("qwen3", "none"), ("qwen3", "elementwise"), ("qwen2_5_vl", "full"), ("qwen3_vl", "none")),
        *(("qwen3_vl", "full"), ("qwen2_audio", "elementwise")),
    ],
)
def test_five_packs_take_one_graph_a_kind_of_block_and_have_the_gradients_of_plain_blocks(
    family: str, recompute: str
) -> None:
    batches = padded(family)
    plain, compiled = tiny_model(family), built(family, recompute)
    before, dense = compiled_graphs(), set()
    for number, batch in enumerate(batches):
        if batch.vision is not None:
            dense.add(batch.vision.tower.get("dense_windows"))
        losses = []
        for model in (plain, compiled):
            model.zero_grad()
            loss, _ = model(batch, family in VISION_FAMILIES, step_has_sounds=family in AUDIOS)
            loss.backward()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
        assert_same_gradients(gradients(compiled), gradients(plain))
        if number == 0:
            first = compiled_graphs() - before
    # In Qwen2.5-VL blocks within windows and over images are two kinds, and numbers of dense windows make more.
    kinds = {"qwen3": 1, "qwen3_vl": 2, "qwen2_audio": 2, "qwen2_5_vl": 3, "qwen2_5_omni_thinker": 4}[family]
    assert first == kinds
    assert compiled_graphs() - before == kinds + len(dense) - (1 if family in VISION_FAMILIES else 0)


@pytest.mark.parametrize(("family", "recompute"), [("qwen3", "elementwise"), ("qwen3_vl", "none"), ("qwen3", "full")])
def test_what_compiled_blocks_save_goes_to_main_memory_and_back(family: str, recompute: str) -> None:
    batches = padded(family)[:2]
    plain, compiled = tiny_model(family), built(family, recompute)
    copies, _ = offloaded(compiled)
    for batch in batches:
        for model in (plain, compiled):
            model.zero_grad()
            model(batch, family in VISION_FAMILIES)[0].backward()
        assert_same_gradients(gradients(compiled), gradients(plain))
    assert sorted(copies.out) == sorted(copies.back) != []


def test_compiled_blocks_keep_elementwise_what_others_keep() -> None:
    batch = padded("qwen3_vl")[0]
    none, elementwise, full = (saved_bytes(built("qwen3_vl", one), batch) for one in ("none", "elementwise", "full"))
    assert elementwise == pytest.approx(kept_bytes(tiny_model("qwen3_vl", recompute="elementwise"), batch), rel=0.03)
    assert full < elementwise < none


@pytest.mark.parametrize("family", ["qwen3", "qwen2_5_vl"])
def test_nothing_is_compiled_after_each_shape_was_seen(family: str) -> None:
    model, batches = built(family, "full"), padded(family)
    for batch in batches:
        model(batch, family in VISION_FAMILIES)[0].backward()
    before = compiled_graphs()
    with no_recompiles():
        for batch in reversed(batches):
            model(batch, family in VISION_FAMILIES)[0].backward()
    assert compiled_graphs() == before


def test_blocks_with_lora_compile_and_have_the_gradients_of_plain_ones() -> None:
    everything: dict[str, How] = {"default": "lora"}
    batches = padded("qwen3_vl")
    plain, compiled = (tiny_model("qwen3_vl", train=everything) for _ in range(2))
    for model in (plain, compiled):
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.constant_(parameter, 0.01)
    compile_blocks(blocks(compiled), BACKEND)
    for number, batch in enumerate(batches):
        if number == 1:
            before = compiled_graphs()
        for model in (plain, compiled):
            model.zero_grad()
            model(batch, True)[0].backward()
        assert_same_gradients(gradients(compiled), gradients(plain))
    assert compiled_graphs() == before


def test_another_shape_is_found_out() -> None:
    model = built("qwen3", "none")
    recipe = padding_recipe("qwen3", five_packs("qwen3"))
    plain = [make_batch([pack], recipe, places(0)) for pack in five_packs("qwen3")[:2]]
    model(plain[0], False)[0].backward()
    with no_recompiles(), pytest.raises(RecompileError, match="size mismatch"):
        model(plain[1], False)


def test_without_gradients_a_compiled_model_has_the_same_loss() -> None:
    batch = padded("qwen3_vl")[0]
    model = built("qwen3_vl", "full")
    expected, _ = model(batch, True)
    model.eval()
    with torch.no_grad():
        found, _ = model(batch, True)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=0)


def test_a_block_that_cannot_be_compiled_raises() -> None:
    class Waits(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x.sum().item() if x.sum() > 0 else x

    block = Waits()
    compile_blocks([block], BACKEND)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        block(torch.ones(3))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 1)])
def test_the_operator_is_the_reference_with_its_gradients(heads: int, key_heads: int, causal: bool) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(17, n, 8, dtype=torch.float64, requires_grad=True) for n in (heads, key_heads, key_heads)]
    cu_seqlens = torch.tensor([0, 5, 5, 6, 15, 17, 17, 17], dtype=torch.int32)
    found = documents_attention(*tensors, cu_seqlens, 0.3, causal)
    expected = reference_attention(*tensors, cu_seqlens, 0.3, causal)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    for one, other in zip(
        *(torch.autograd.grad((out * direction).sum(), tensors) for out in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, other)
    torch.library.opcheck(documents_attention, (*tensors, cu_seqlens, 0.3, causal))


def on_a_rank(rank: int, ranks: int, family: str, folder: str) -> None:
    """Twice forward and backward over the packs dealt to this rank; keeps the gradients and the new graphs."""
    world = start_world("cpu")
    model = build_model(tiny_config(family), "full")
    compile_blocks(blocks(model), BACKEND)
    if ranks > 1:
        offload_blocks(model, blocks(model), torch.empty(10**8, dtype=torch.uint8), copy_at_once, 1)
    shard_model(model, blocks(model), world, torch.float32)
    materialize(model, world.device)
    init_random(model, 0)
    graphs = []
    for _ in range(2):
        model.zero_grad()
        before = compiled_graphs()
        for batch in padded(family)[:2][rank::ranks]:
            model(batch, family in VISION_FAMILIES)[0].backward()
        graphs.append(compiled_graphs() - before)
    # One rank alone is not sharded.
    whole = {
        name: gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        for name, gradient in gradients(model).items()
    }
    if rank == 0:
        torch.save((whole, graphs), Path(folder) / "found")
    stop_world()


@pytest.mark.parametrize(("ranks", "family"), [(1, "qwen2_5_vl"), (2, "qwen3")])
def test_compiled_recomputed_and_sharded_blocks_have_the_gradients_of_plain_ones(
    ranks: int, family: str, tmp_path: Path
) -> None:
    on_ranks(on_a_rank, ranks, family, str(tmp_path))
    plain = tiny_model(family)
    for batch in padded(family)[:2]:
        plain(batch, family in VISION_FAMILIES)[0].backward()
    found, (first, second) = torch.load(tmp_path / "found")
    assert_same_gradients(found, gradients(plain))
    assert first >= 1
    assert second == 0


def test_a_run_with_compiled_blocks_is_the_run_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an evaluation, which runs without gradients."""
    monkeypatch.setattr("lmms.train.setup.compile_blocks", lambda blocks, backend: compile_blocks(blocks, BACKEND))
    settings = write_run(tmp_path, "qwen3_vl") | {"max_steps": 2, "eval.shards": str(tmp_path / "shards")}
    before = compiled_graphs()
    for compiled in (False, True):
        train(run_config(settings, output=str(tmp_path / str(compiled)), kernels__compile=compiled), silent)
        assert (compiled_graphs() > before) == compiled
    found, expected = (read_metrics(tmp_path / str(compiled)) for compiled in (True, False))
    for line, other in zip(found, expected, strict=True):
        assert line["digest"] == other["digest"]
        for name in ("loss", "grad_norm_llm", "grad_norm_vision", "grad_norm_aligner", "eval_loss"):
            assert line[name] == (other[name] and pytest.approx(other[name], rel=1e-5))
    assert found[-1]["eval_loss"] is not None


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_inductor_takes_the_blocks_too() -> None:
    batch = padded("qwen3")[0]
    plain, compiled = tiny_model("qwen3"), tiny_model("qwen3")
    compile_blocks(blocks(compiled))
    for model in (plain, compiled):
        model(batch, False)[0].backward()
    assert_same_gradients(gradients(compiled), gradients(plain))
