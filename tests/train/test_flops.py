"""Strict model FLOPs against torch's own counter, which sees every product that a real step makes."""

from dataclasses import asdict

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config
from transformers.vision_utils import get_vision_window_index

from lmms.configs.contract import Pack
from lmms.configs.train import Part
from lmms.train.batch import make_batch
from lmms.train.flops import ModelCost, _squared_windows, model_cost, pack_flops, peak_flops
from lmms.train.optim import freeze
from tests.train.helpers import (
    FAMILIES,
    VISION_FAMILIES,
    make_pack,
    picture,
    talk,
    tiny_config,
    tiny_model,
    tiny_recipe,
)

aten = torch.ops.aten


def tiny_pack(family: str) -> Pack:
    if family not in VISION_FAMILIES:
        return make_pack([talk(1, 9), talk(2, 30), talk(3, 17)])
    images = [picture(seed, width, height) for seed, (width, height) in enumerate([(24, 16), (56, 40), (16, 16)])]
    return make_pack([talk(1, 9, images[:2]), talk(2, 30), talk(3, 17, images[2:])])


def attention_forward(query: list[int], key: list[int], value: list[int], *_: object, **__: object) -> int:
    """Two products over the whole square: torch's CPU attention has no formula of its own."""
    batch, heads, length, width = query
    return 4 * batch * heads * length**2 * width


def attention_backward(grad: list[int], *inputs: list[int], **_: object) -> int:
    """Four products; the scores that the kernel makes again are recomputation."""
    return 2 * attention_forward(*inputs[:3])


def counted(family: str, pack: Pack, frozen: tuple[Part, ...] = ()) -> tuple[int, int]:
    """Operations that torch saw in a step: of matrix products, and of attention over whole squares."""
    model = tiny_model(family)
    freeze(model, frozen)
    batch = make_batch([pack], tiny_recipe(family))
    linear = {aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1]}
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention_forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping={**linear, **attention}) as counter:
        model(batch, batch.images > 0).backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(counts.get(op, 0) for op in (aten.mm, aten.addmm, aten.addmm_))
    return products, sum(counts.get(op, 0) for op in attention)


def part(cost: ModelCost, pack: Pack, *names: str) -> float:
    """The pack's operations by these fields of the cost alone."""
    only = {name: value if name in (*names, "window") else 0 for name, value in asdict(cost).items()}
    return pack_flops(ModelCost(**only), pack)


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_layers_cost_what_torch_counts(family: str) -> None:
    pack = tiny_pack(family)
    cost = model_cost(tiny_config(family))
    assert part(cost, pack, "token", "target", "patch") == counted(family, pack)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_costs_what_torch_counts_and_half_where_it_is_causal(family: str) -> None:
    pack = tiny_pack(family)
    cost = model_cost(tiny_config(family))
    whole = 2 * part(cost, pack, "squared_length") + part(cost, pack, "squared_image", "squared_window")
    assert whole == counted(family, pack)[1]


@pytest.mark.parametrize("family", VISION_FAMILIES)
@pytest.mark.parametrize(
    "frozen", [("vision",), ("vision", "aligner"), ("llm",), ("llm", "vision"), ("aligner",), ("llm", "aligner")]
)
def test_frozen_parts_cost_what_torch_counts(family: str, frozen: tuple[Part, ...]) -> None:
    pack = tiny_pack(family)
    cost = model_cost(tiny_config(family), frozen)
    products, attention = counted(family, pack, frozen)
    assert part(cost, pack, "token", "target", "patch") == products
    whole = 2 * part(cost, pack, "squared_length") + part(cost, pack, "squared_image", "squared_window")
    assert whole == attention


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_a_pack_without_images_costs_no_vision(family: str) -> None:
    pack = make_pack([talk(1, 9), talk(2, 30)])
    cost = model_cost(tiny_config(family))
    assert pack_flops(cost, pack) == part(cost, pack, "token", "target", "squared_length")


@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 8, 8), (1, 10, 22), (1, 16, 6), (3, 10, 8)])
def test_windows_are_those_of_the_model(grid: tuple[int, int, int]) -> None:
    _, cu_seqlens = get_vision_window_index(torch.tensor([grid]), 2, 112, 14)
    assert _squared_windows(grid, 112 // 14) == int(cu_seqlens.diff().square().sum())


def test_a_real_model_costs_six_times_its_weights() -> None:
    """Qwen2.5-0.5B, whose head is its embedding: looked up for every token, multiplied for targets alone."""
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    )
    cost = model_cost(config)
    block = 896 * 896 * 2 + 2 * 896 * 128 + 3 * 896 * 4864
    assert cost.token == 6 * 24 * block
    assert cost.target == 6 * 151936 * 896
    assert cost.squared_length == 6 * 24 * 896


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L40", None),
        ("NVIDIA H20", None),
        ("NVIDIA A10", None),
        ("cpu", None),
    ],
)
def test_a_device_has_its_data_sheets_peak_or_none(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
