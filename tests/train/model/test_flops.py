"""Strict model FLOPs against torch's own counter, which sees every product that a real step makes."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig, Qwen2Config
from transformers.vision_utils import get_vision_window_index

from lmms.configs.by_part import Part
from lmms.configs.contract.costs import ModelCost
from lmms.configs.contract.pack import Pack
from lmms.configs.settings.lora import LoraConfig
from lmms.configs.settings.train import EVERYTHING, How
from lmms.train.data.costs import _squared_windows, pack_flops, table_costs
from lmms.train.data.shards import Sidecar
from lmms.train.model.build import build_model
from lmms.train.model.flops import model_cost
from lmms.train.plan.cards import peak_flops
from tests.kit.model.models import (
    AUDIOS,
    FAMILIES,
    SOUND_FAMILIES,
    VISION_FAMILIES,
    frozen,
    joined,
    make_pack,
    picture,
    talk,
    tiny_cost,
    tiny_model,
    tiny_recipe,
)
from tests.kit.model.padding import sidecar_of
from tests.kit.model.sounds import noise_sound

aten = torch.ops.aten

LORA = LoraConfig(rank=3)
OF_TOWERS = ("squared_image", "squared_window", "squared_sound")
"""Attention in towers."""


def tiny_pack(family: str) -> Pack:
    sizes = [(24, 16), (56, 40), (16, 16)] if family in VISION_FAMILIES else []
    images = [picture(seed, width, height) for seed, (width, height) in enumerate(sizes)]
    # Whole chunks: the convolutions have nothing to compute besides.
    sounds = [noise_sound(seed, samples, AUDIOS[family]) for seed, samples in enumerate(WHOLE.get(family, ()))]
    return make_pack([talk(1, 9, [*images[:2], *sounds[:1]]), talk(2, 30), talk(3, 17, [*images[2:], *sounds[1:]])])


WHOLE = {"qwen2_5_omni_thinker": (2560, 3840), "qwen2_audio": (16000, 16000)}
"""Samples of sounds."""


def attention_forward(query: list[int], key: list[int], value: list[int], *_: object, **__: object) -> int:
    """Two products over the whole square: torch's CPU attention has no formula of its own."""
    batch, heads, length, width = query
    return 4 * batch * heads * length**2 * width


def attention_backward(grad: list[int], *inputs: list[int], **_: object) -> int:
    """Four products; the scores that the kernel makes again are recomputation."""
    return 2 * attention_forward(*inputs[:3])


def counted(family: str, pack: Pack, train: Mapping[str, How] = EVERYTHING) -> tuple[int, int]:
    """Operations that torch saw in a step: of matrix products, and of attention over whole squares."""
    model = tiny_model(family, train=train, lora=LORA)
    batch = joined([pack], tiny_recipe(family))
    linear = {aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1]}
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention_forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping={**linear, **attention}) as counter:
        model(batch, batch.images > 0, step_has_sounds=batch.num_sounds > 0)[0].backward()
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
    cost = tiny_cost(family)
    assert part(cost, pack, "token", "target", "patch", "sound_position") == counted(family, pack)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_costs_what_torch_counts_and_half_where_it_is_causal(family: str) -> None:
    pack = tiny_pack(family)
    cost = tiny_cost(family)
    whole = 2 * part(cost, pack, "squared_length") + part(cost, pack, *OF_TOWERS)
    assert whole == counted(family, pack)[1]


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        *product(
            VISION_FAMILIES,
            [("vision",), ("vision", "aligner"), ("llm",), ("llm", "vision"), ("aligner",), ("llm", "aligner")],
        ),
        *product(SOUND_FAMILIES, [("audio",), ("audio", "aligner"), ("llm", "audio")]),
        ("qwen2_5_omni_thinker", ("audio", "vision")),
        ("qwen2_5_omni_thinker", ("llm", "audio", "vision")),
        ("qwen2_5_omni_thinker", ("llm", "aligner", "vision")),
    ],
)
def test_frozen_parts_cost_what_torch_counts(family: str, parts: tuple[Part, ...]) -> None:
    pack = tiny_pack(family)
    cost = tiny_cost(family, frozen(*parts))
    products, attention = counted(family, pack, frozen(*parts))
    assert part(cost, pack, "token", "target", "patch", "sound_position") == products
    whole = 2 * part(cost, pack, "squared_length") + part(cost, pack, *OF_TOWERS)
    assert whole == attention


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "train",
    [
        {"default": "lora"},
        {"default": "frozen", "llm": "lora"},
        {"default": "frozen", r"layers\.[12]\..*down": "lora", r"layers\.1\.input_layernorm": "full"},
        {"default": "full", "llm": "lora"},
    ],
)
def test_lora_costs_what_torch_counts(family: str, train: dict[str, How]) -> None:
    pack = tiny_pack(family)
    cost = tiny_cost(family, train, LORA)
    products, attention = counted(family, pack, train)
    assert part(cost, pack, "token", "target", "patch", "sound_position") == products
    whole = 2 * part(cost, pack, "squared_length") + part(cost, pack, *OF_TOWERS)
    assert whole == attention


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_lora_around_its_layers_costs_what_it_will_before_it_has_any(family: str) -> None:
    train: dict[str, How] = {"default": "full", "llm": "lora"}
    assert model_cost(tiny_model(family, train=train, lora=LORA), train, LORA) == tiny_cost(family, train, LORA)


@pytest.mark.parametrize(
    ("family", "part_alone"),
    [*product(VISION_FAMILIES, ["aligner", "vision"]), *product(SOUND_FAMILIES, ["aligner", "audio"])],
)
def test_lora_on_one_part_alone_costs_what_torch_counts(family: str, part_alone: Part) -> None:
    pack, train = tiny_pack(family), {"default": "frozen", part_alone: "lora"}
    cost = tiny_cost(family, train, LORA)
    products, attention = counted(family, pack, train)
    assert part(cost, pack, "token", "target", "patch", "sound_position") == products
    whole = 2 * part(cost, pack, "squared_length") + part(cost, pack, *OF_TOWERS)
    assert whole == attention


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_a_pack_without_images_costs_no_vision(family: str) -> None:
    pack = make_pack([talk(1, 9), talk(2, 30)])
    cost = tiny_cost(family)
    assert pack_flops(cost, pack) == part(cost, pack, "token", "target", "squared_length")


@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 8, 8), (1, 10, 22), (1, 16, 6), (3, 10, 8)])
def test_windows_are_those_of_the_model(grid: tuple[int, int, int]) -> None:
    _, cu_seqlens = get_vision_window_index(torch.tensor([grid]), 2, 112, 14)
    assert _squared_windows(grid, 112 // 14) == int(cu_seqlens.diff().square().sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sidecar_gives_what_the_packs_cost(family: str) -> None:
    packs = [tiny_pack(family), make_pack([talk(4, 50)]), make_pack([talk(seed, 5) for seed in range(5)])]
    cost = tiny_cost(family)
    language, vision = table_costs(cost, sidecar_of(packs))
    in_language = ("token", "target", "squared_length")
    assert language.tolist() == pytest.approx([part(cost, pack, *in_language) for pack in packs], rel=1e-4)
    assert vision[1:].tolist() == [0, 0]
    exact = pack_flops(cost, packs[0]) - part(cost, packs[0], *in_language)
    # Windows at the edges count as whole ones, see below; half an operation a patch is lost to integers.
    assert exact * (1 - 1e-4) <= vision[0] <= exact * (1 + 1e-4) + edge_windows(cost, packs[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sidecar_gives_what_torch_counts(family: str) -> None:
    pack = tiny_pack(family)
    cost = tiny_cost(family)
    products, attention = counted(family, pack)
    # torch counts causal attention as whole squares.
    expected = products + attention - part(cost, pack, "squared_length")
    found = int(table_costs(cost, sidecar_of([pack])).sum())
    assert expected * (1 - 1e-4) <= found <= expected * (1 + 1e-4) + edge_windows(cost, pack)


def edge_windows(cost: ModelCost, pack: Pack) -> float:
    """How much a pack's images may be overrated."""
    return cost.squared_window * sum(most_overrated(m.grid_thw, cost.window) for m in pack.media)


def most_overrated(grid_thw: tuple[int, int, int], side: int) -> float:
    """n patches along an edge count as n * side; in truth they are less by (n % side) * (side - n % side), so by
    side**2 / 4 at most."""
    t, rows, columns = grid_thw
    return t * side**2 / 4 * (side * (rows + columns) + side**2 / 4)


@given(st.integers(1, 4), st.integers(1, 200), st.integers(1, 200))
def test_windows_taken_for_whole_overrate_an_image_by_a_quarter_at_each_edge_at_most(t: int, h: int, w: int) -> None:
    whole = t * h * w * 8**2
    assert 0 <= whole - _squared_windows((t, h, w), 8) <= most_overrated((t, h, w), 8)


def test_windows_of_a_real_tower_are_a_small_part_of_its_cost() -> None:
    """So an edge taken for a whole window cannot move a pack far in the order: less than 1 % of the tower's cost."""
    tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}
    config = Qwen2_5_VLConfig(vision_config={**tower, "fullatt_block_indexes": [7, 15, 23, 31]})
    cost = model_cost(build_model(config, "none"))
    assert cost.window == 8
    assert 0 < cost.squared_window * cost.window**2 < 0.01 * cost.patch


def test_costs_of_long_packs_of_large_models_fit_their_integers() -> None:
    """A million tokens in one conversation, a model of 70 billion parameters."""
    cost = ModelCost(
        token=6 * 70e9,
        target=6 * 1e9,
        squared_length=6 * 80 * 8192,
        patch=4e9,
        squared_image=3e5,
        squared_window=0,
        window=0,
    )
    pack = {"tokens": 2**20, "target_tokens": 2**20, "sum_squared_lengths": 2**40, "patches": 2**20}
    columns = {field.name: np.zeros(1, np.int64) for field in fields(Sidecar)}
    columns |= {name: np.array([value]) for name, value in pack.items()}
    language, vision = table_costs(cost, Sidecar(**columns))
    exact = 2**20 * (cost.token + cost.target) + 2**40 * cost.squared_length
    assert language.tolist() == [pytest.approx(exact)]
    assert vision.tolist() == [pytest.approx(2**20 * cost.patch)]


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
    cost = model_cost(build_model(config, "none"))
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
        ("NVIDIA H20", 148e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA A800-SXM4-80GB", 312e12),
        ("NVIDIA H800 PCIe", 756e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA A10", None),
        ("cpu", None),
    ],
)
def test_a_device_has_its_data_sheets_peak_or_none(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
