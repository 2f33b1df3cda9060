"""The arithmetic of the bench: products and attention add up to strict FLOPs, floors are what shapes and bytes say,
and what counts as computed again is what torch computes again."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lmms.configs.contract.manifest import open_dataset
from lmms.configs.settings.memory import Recompute
from lmms.train.batch.batch import Batch, make_batch
from lmms.train.batch.recipe import make_recipe
from lmms.train.data.costs import pack_flops
from lmms.train.data.shards import Place
from lmms.train.model.build import blocks, build_model, init_random, materialize
from lmms.train.model.flops import model_cost
from lmms.train.model.forward import TrainModel
from lmms.train.model.kernels import compile_blocks
from tools.gpu.pieces.ceilings import ProductSpeed
from tools.gpu.pieces.models import FIRST, MINI, MODELS, SECOND, model_config
from tools.gpu.pieces.packs import make_packs, pack_file
from tools.gpu.pieces.shapes import Rows, attention_layers, body_products, head_product, rows_of
from tools.gpu.pieces.training import update_bytes
from tools.gpu.report.summary import RECOMPUTED, best_attention, elementwise_bytes, head_bytes, pass_floors

SMALL = replace(MINI, seq_len=64, packs=1, conversation=(16, 30, 50), image=(4, 12))
RATE, COPY = 1e12, 1e11


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs")
    for model in MODELS:
        make_packs(model, MINI, folder / model)
    return folder


@pytest.mark.parametrize("name", ["text", "vision"])
@pytest.mark.parametrize("model", list(MODELS))
def test_products_and_attention_of_a_whole_model_add_up_to_strict_flops(model: str, name: str, packs: Path) -> None:
    """The packs are a miniature's, whose grids fit the whole model too."""
    pack = pack_file(packs / model, name)[0]
    config = model_config(model, thin=False)
    rows = rows_of(pack)
    linear = sum(3 * product.flops * count for product, count in body_products(config, rows).items())
    attention = sum(3 * layer.flops * layer.count for layer in attention_layers(config, pack))
    total = linear + 3 * head_product(config, rows).flops + attention
    # The first products of all pass no gradient on to their input: there is none.
    through_patches = 2.0 * rows.patches * 3 * 2 * config.vision_config.patch_size**2 * config.vision_config.hidden_size
    assert pack_flops(model_cost(build_model(config, "none")), pack) == pytest.approx(total - through_patches, rel=1e-9)


ROWS = Rows(tokens=100, targets=20, patches=160)
THIN = model_config(SECOND, thin=True)


def floors(recompute: str) -> dict[str, float]:
    """Of a pass over ROWS, where every product has the same rate."""
    head = head_product(THIN, ROWS)
    products = []
    for product, layers in {head: 1, **body_products(THIN, ROWS)}.items():
        seconds = dict.fromkeys(("forward", "input_grad", "weight_grad"), product.flops / RATE)
        place = {"shape": product.shape, "layers": layers, "again": product.again, "head": product is head}
        products.append(asdict(ProductSpeed(**place, **seconds, flops=RATE)))
    attention = [{"layer": "language", "count": 2, "forward": 1e-3, "backward": 2e-3}]
    return pass_floors(THIN, ROWS, recompute, products, attention, COPY)


def test_a_floor_is_work_over_the_rate_that_was_measured() -> None:
    linear = sum(3 * product.flops * count for product, count in body_products(THIN, ROWS).items())
    computed = floors("none")
    assert computed["gemm"] == pytest.approx(linear / RATE)
    assert computed["attention"] == pytest.approx(2 * 3e-3)
    assert computed["loss"] == pytest.approx(3 * 2 * 20 * 256 * 512 / RATE + head_bytes(20, 512) / COPY)
    assert computed["elementwise"] == pytest.approx(elementwise_bytes(THIN, ROWS, again=False) / COPY)


def test_what_is_computed_again_counts_again() -> None:
    none, elementwise, full = (floors(recompute) for recompute in ("none", "elementwise", "full"))
    again = sum(product.flops * count for product, count in body_products(THIN, ROWS).items() if product.again)
    assert full["gemm"] - none["gemm"] == pytest.approx(again / RATE)
    assert full["attention"] - none["attention"] == pytest.approx(2 * 1e-3)
    assert full["elementwise"] == elementwise["elementwise"] > none["elementwise"]
    assert elementwise["gemm"] == none["gemm"]
    assert full["loss"] == none["loss"]
    assert RECOMPUTED["none"] == ()


def test_elementwise_bytes_of_one_token_are_those_counted_by_hand() -> None:
    config = model_config("Qwen2.5-VL-3B", thin=True)
    # Two blocks of width 256, inner width 512, 3 heads of 128 that turn.
    forward, backward = 8 * 256 + 2 * 384 + 3 * 512, 8 * 256 + 2 * 384 + 5 * 512
    one = Rows(tokens=1, targets=0, patches=0)
    assert elementwise_bytes(config, one, again=False) == 2 * 2 * (forward + backward)
    assert elementwise_bytes(config, one, again=True) == 2 * 2 * (2 * forward + backward - 2 * 256)
    assert elementwise_bytes(config, Rows(tokens=0, targets=0, patches=4), again=False) > 0


def test_the_fastest_kernel_that_passed_makes_the_floor_of_attention() -> None:
    def kernel(backend: str, seconds: float, passed: bool = True, model: str = "A") -> dict[str, Any]:
        speed = {"layer": "language", "count": 3, "forward": seconds, "backward": 2 * seconds, "name": backend}
        return {"model": model, "packs": "text", "passed": passed, "speeds": [speed]}

    kernels = [kernel("slow", 3.0), kernel("wrong", 1.0, passed=False), kernel("best", 2.0)]
    kernels.append(kernel("other", 1.0, model="B"))
    assert [speed["name"] for speed in best_attention(kernels, "A", "text")] == ["best"]
    assert best_attention(kernels, "A", "vision") == []


def test_an_update_of_adamw_moves_32_bytes_a_weight() -> None:
    layer = nn.Linear(8, 4, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    assert update_bytes(optimizer) == 32 * 32


def model_and_batch(name: str, packs: str, recompute: Recompute, folder: Path) -> tuple[TrainModel, Batch]:
    config = model_config(name, thin=True)
    model = build_model(config, recompute)
    materialize(model, torch.device("cpu"))
    init_random(model, 0)
    recipe = make_recipe([open_dataset(folder / packs).manifest], config, "stop")
    return model, make_batch(pack_file(folder, packs), recipe, [Place(0, 0, 0, 0, 0, 0)])


def repeated(name: str, packs: str, folder: Path) -> float:
    """Operations that the floor counts once more."""
    config, rows = model_config(name, thin=True), rows_of(pack_file(folder, packs)[0])
    return sum(product.flops * count for product, count in body_products(config, rows).items() if product.again)


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_products_that_count_again_are_those_that_torchs_checkpoint_repeats(name: str, tmp_path: Path) -> None:
    folder = make_packs(name, SMALL, tmp_path)
    flops: dict[Recompute, int] = {}
    for recompute in ("none", "elementwise", "full"):
        model, batch = model_and_batch(name, "vision", recompute, folder)
        with FlopCounterMode(display=False) as counter:
            model(batch, True)[0].backward()
        by_operator = counter.get_flop_counts()["Global"]
        flops[recompute] = by_operator[torch.ops.aten.mm] + by_operator[torch.ops.aten.addmm]
    assert flops["full"] - flops["none"] == repeated(name, "vision", folder) > 0
    assert flops["elementwise"] == flops["none"]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_block_repeats_the_same_products(tmp_path: Path) -> None:
    folder = make_packs(SECOND, SMALL, tmp_path)
    flops: dict[Recompute, int] = {}
    for recompute in ("none", "full"):
        torch._dynamo.reset()
        model, batch = model_and_batch(SECOND, "text", recompute, folder)
        compile_blocks(blocks(model), "aot_eager")
        model(batch, False)[0].backward()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            model(batch, False)[0].backward()
        shapes = [event.input_shapes for event in profiler.events() or () if event.name == "aten::mm"]
        flops[recompute] = sum(2 * a[0] * a[1] * b[1] for a, b, *_ in shapes)
    assert flops["full"] - flops["none"] == repeated(SECOND, "text", folder) > 0
