"""The arithmetic of the bench: products and attention add up to strict FLOPs, floors are what shapes and bytes say."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmms.train.data.costs import pack_flops
from lmms.train.model.build import build_model
from lmms.train.model.flops import model_cost
from tools.gpu.ceilings import ProductSpeed
from tools.gpu.floors import RECOMPUTED, best_attention, elementwise_bytes, floor_seconds, head_bytes
from tools.gpu.layers import attention_layers
from tools.gpu.models import MODELS, model_config
from tools.gpu.packs import make_packs, pack_file
from tools.gpu.shapes import Rows, body_products, head_product, rows_of
from tools.gpu.sizes import MINI
from tools.gpu.training import update_bytes

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


def speeds(model: str, rows: Rows) -> list[dict[str, Any]]:
    """Every product at the same rate."""
    config = model_config(model, thin=True)
    head = head_product(config, rows)
    found = []
    for product, layers in {head: 1, **body_products(config, rows)}.items():
        each = product.flops / RATE
        speed = ProductSpeed(
            shape=product.shape,
            layers=layers,
            again=product.again,
            head=product is head,
            forward=each,
            input_grad=each,
            weight_grad=each,
            flops=RATE,
        )
        found.append(asdict(speed))
    return found


def floors(recompute: str, rows: Rows) -> dict[str, float]:
    attention = [{"layer": "language", "count": 2, "forward": 1e-3, "backward": 2e-3}]
    config = model_config("Qwen3-VL-2B", thin=True)
    return floor_seconds(config, rows, recompute, speeds("Qwen3-VL-2B", rows), attention, COPY, 64 * 10**6, passes=2)


def test_a_floor_is_work_over_the_rate_that_was_measured() -> None:
    rows = Rows(tokens=100, targets=20, patches=160)
    config = model_config("Qwen3-VL-2B", thin=True)
    linear = sum(3 * product.flops * count for product, count in body_products(config, rows).items())
    found = floors("none", rows)
    assert found["gemm"] == pytest.approx(2 * linear / RATE)
    assert found["attention"] == pytest.approx(2 * 2 * 3e-3)
    assert found["loss"] == pytest.approx(2 * (3 * 2 * 20 * 256 * 512 / RATE + head_bytes(20, 512) / COPY))
    assert found["optimizer"] == pytest.approx(64e6 / COPY)
    assert found["elementwise"] == pytest.approx(2 * elementwise_bytes(config, rows, again=False) / COPY)
    assert found["copy"] == found["communication"] == 0


def test_what_is_computed_again_counts_again() -> None:
    rows = Rows(tokens=100, targets=20, patches=160)
    config = model_config("Qwen3-VL-2B", thin=True)
    none, elementwise, full = (floors(recompute, rows) for recompute in ("none", "elementwise", "full"))
    again = sum(product.flops * count for product, count in body_products(config, rows).items() if product.again)
    assert full["gemm"] - none["gemm"] == pytest.approx(2 * again / RATE)
    assert full["attention"] - none["attention"] == pytest.approx(2 * 2 * 1e-3)
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

    found = [
        kernel("slow", 3.0),
        kernel("wrong", 1.0, passed=False),
        kernel("best", 2.0),
        kernel("other", 1.0, True, "B"),
    ]
    assert [speed["name"] for speed in best_attention(found, "A", "text")] == ["best"]
    assert best_attention(found, "A", "vision") == []


def test_an_update_of_adamw_moves_32_bytes_a_weight() -> None:
    layer = nn.Linear(8, 4, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    assert update_bytes(optimizer) == 32 * 32
