"""Which layers get LoRA, what is trained beside it, how it starts."""

import sys
from typing import Any

import peft
import pytest
import torch
from torch import nn

from lmms.configs.contract.hashing import key64
from lmms.configs.errors import ConfigError
from lmms.configs.settings.lora import LoraConfig
from lmms.configs.settings.optim import OptimConfig
from lmms.configs.settings.train import How
from lmms.train.model.build import build_model
from lmms.train.model.lora import init_lora, lora_layers, trained_names
from lmms.train.model.names import is_lora, parameter_name
from lmms.train.optim.groups import make_optimizer, trained_parts
from tests.kit.model.models import (
    AUDIOS,
    FAMILIES,
    VISION_FAMILIES,
    joined,
    make_pack,
    part_of,
    picture,
    talk,
    tiny_config,
    tiny_model,
)
from tests.kit.model.models import tiny_recipe as recipe_of
from tests.kit.model.sounds import noise_sound

ONLY_LLM: dict[str, How] = {"default": "frozen", "llm": "lora"}


def layers(family: str, train: dict[str, How], tied: bool = False, **lora: Any) -> list[str]:
    return lora_layers(build_model(tiny_config(family, tied), "none"), train, LoraConfig(**lora))


def trained(family: str, train: dict[str, How], tied: bool = False, **lora: Any) -> set[str]:
    return trained_names(build_model(tiny_config(family, tied), "none"), train, LoraConfig(**lora))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_every_linear_layer_of_the_part_but_the_head(family: str) -> None:
    model = build_model(tiny_config(family), "none")
    linear = [parameter_name(name) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert layers(family, ONLY_LLM) == [name for name in linear if part_of(family, name) == "llm" and name != "lm_head"]
    assert layers(family, {"default": "lora"}) == [name for name in linear if name != "lm_head"]


def test_targets_are_names_by_their_last_parts_and_patterns_are_searched_for() -> None:
    assert layers("qwen3_vl", ONLY_LLM, targets=("q_proj", "mlp.down_proj")) == [
        f"model.language_model.layers.{i}.{name}" for i in range(3) for name in ("self_attn.q_proj", "mlp.down_proj")
    ]
    assert layers("qwen3_vl", {"default": "lora"}, target_regex=r"layers\.1\..*[qk]_proj|blocks\.2\.attn\.qkv") == [
        "model.visual.blocks.2.attn.qkv",
        *(f"model.language_model.layers.1.self_attn.{name}_proj" for name in "qk"),
    ]
    assert layers("qwen3_vl", {"default": "frozen", r"layers\.0.*v_proj": "lora"}) == [
        "model.language_model.layers.0.self_attn.v_proj"
    ]


def test_modules_to_save_are_trained_in_full_and_containers_expand() -> None:
    train: dict[str, How] = {"default": "frozen", "llm": "lora", "aligner": "lora"}
    saved = ("deepstack_merger_list", "merger.linear_fc1", "lm_head")
    found = trained("qwen3_vl", train, modules_to_save=saved)
    assert {name.partition("visual.")[2].partition(".")[0] for name in found} == {"", "merger", "deepstack_merger_list"}
    assert len([name for name in found if "deepstack_merger_list" in name]) == 2 * 3 * 2
    assert {name for name in found if ".merger." in name} == {
        f"model.visual.merger.linear_fc1.{name}" for name in ("weight", "bias")
    }
    assert "lm_head.weight" in found
    with_lora = layers("qwen3_vl", train, modules_to_save=saved)
    assert [name for name in with_lora if "merger" in name] == ["model.visual.merger.linear_fc2"]


def test_the_head_of_a_tied_model_is_its_embedding() -> None:
    found = trained("qwen3", {"default": "lora"}, tied=True, modules_to_save=("lm_head",))
    assert found == {"model.embed_tokens.weight"}


def test_biases_are_trained_as_asked_for() -> None:
    train: dict[str, How] = {"default": "frozen", "vision": "lora"}
    qkv = {f"model.visual.blocks.{i}.attn.qkv.bias" for i in range(4)}
    assert trained("qwen3_vl", train, targets=("qkv",)) == set()
    assert trained("qwen3_vl", train, targets=("qkv",), bias="lora_only") == qkv
    every = trained("qwen3_vl", train, targets=("qkv",), bias="all")
    assert qkv < every
    assert {name.rpartition(".")[2] for name in every} == {"bias"}
    assert {part_of("qwen3_vl", name) for name in every} == {"vision"}


@pytest.mark.parametrize(
    ("train", "lora", "message"),
    [
        (ONLY_LLM, {"targets": ("qproj",)}, "lora.targets: no linear layer is named 'qproj'; did you mean 'q_proj'"),
        (ONLY_LLM, {"targets": ("qkv",)}, "lora.targets names 'qkv', but train sets no layer of that name to lora"),
        (ONLY_LLM, {"targets": ("norm",)}, "names 'norm', which is no linear layer; lora.modules_to_save trains it"),
        (ONLY_LLM, {"targets": ("lm_head",)}, "lm_head cannot have LoRA.*modules_to_save: .lm_head"),
        (ONLY_LLM, {"target_regex": "qprojx"}, "lora.target_regex 'qprojx' is in no name of a linear layer; did you"),
        (
            ONLY_LLM,
            {"modules_to_save": ("mergr",)},
            "modules_to_save: no module is named 'mergr'; did you mean 'merger'",
        ),
        (ONLY_LLM, {"modules_to_save": ("merger",)}, "modules_to_save names .*merger.*, which train freezes"),
        ({"default": "frozen", "norm1": "lora"}, {}, "train: norm1 is lora, but no linear layer of it"),
        ({**ONLY_LLM, "vision": "lora"}, {"targets": ("q_proj",)}, "train: vision is lora, but no linear layer of it"),
        ({"default": "frozen", "visoin": "lora"}, {}, "train: pattern 'visoin'.*did you mean 'vision'"),
    ],
)
def test_what_gives_no_lora_is_refused(train: dict[str, How], lora: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_model("qwen3_vl", train=train, lora=LoraConfig(**lora))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 0}, "lora.rank is 0"),
        ({"alpha": 0}, "lora.alpha is 0"),
        ({"dropout": 1.0}, "lora.dropout is 1.0"),
        ({"targets": ()}, "lora.targets is empty"),
        ({"targets": ("q_proj",), "target_regex": "q"}, "both set"),
        ({"target_regex": "("}, "no regular expression"),
    ],
)
def test_settings_that_mean_nothing_are_refused(lora: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**lora)


def test_without_peft_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'lmms\[lora\]'"):
        tiny_model("qwen3", train=ONLY_LLM)
    tiny_model("qwen3")


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_starts_as_the_model_itself_and_only_it_is_trained(family: str) -> None:
    plain, model = tiny_model(family), tiny_model(family, train={"default": "lora"})
    own = {parameter_name(name): parameter for name, parameter in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == is_lora(name)
        if not is_lora(name):
            assert torch.equal(parameter, own[parameter_name(name)]), name
    images = [picture(1)] if family in VISION_FAMILIES else []
    sounds = [noise_sound(1, 8000, AUDIOS[family])] if family in AUDIOS else []
    batch = joined([make_pack([talk(5, 12, [*images, *sounds])])], recipe_of(family))
    loss, expected = (one(batch, bool(images), step_has_sounds=bool(sounds))[0] for one in (model, plain))
    assert torch.equal(loss, expected)
    loss.backward()
    moved = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    assert moved == {name for name, _ in model.named_parameters() if ".lora_B." in name}


def test_the_start_is_that_of_peft_and_comes_from_the_seed() -> None:
    model = tiny_model("qwen3", train=ONLY_LLM, lora=LoraConfig(rank=4, targets=("q_proj",)))
    first = model.get_submodule("hf.model.layers.0.self_attn.q_proj")
    assert isinstance(first, peft.tuners.lora.Linear)
    weight = first.lora_A["default"].weight
    with torch.random.fork_rng():
        torch.manual_seed(key64("lora", 5))
        first.reset_lora_parameters("default", True)
        theirs = weight.detach().clone()
    init_lora(model, 6)
    assert not torch.equal(weight, theirs)
    init_lora(model, 5)
    assert torch.equal(weight, theirs)
    assert not first.lora_B["default"].weight.any()


@pytest.mark.parametrize("alpha", [4, 12])
def test_alpha_over_rank_is_the_factor_of_what_a_pair_adds(alpha: int) -> None:
    model = tiny_model("qwen3", train=ONLY_LLM, lora=LoraConfig(rank=4, alpha=alpha))
    layer = model.get_submodule("hf.model.layers.0.self_attn.q_proj")
    assert isinstance(layer, peft.tuners.lora.Linear)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.constant_(b, 0.5)
    inputs = torch.randn(7, a.shape[1], generator=torch.Generator().manual_seed(0))
    added = layer(inputs) - layer.base_layer(inputs)
    torch.testing.assert_close(added, alpha / 4 * inputs @ a.T @ b.T, rtol=1e-4, atol=1e-5)


def test_dropout_is_drawn_in_training_alone() -> None:
    model = tiny_model("qwen3", train=ONLY_LLM, lora=LoraConfig(rank=4, dropout=0.5))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.constant_(parameter, 0.5)
    batch = joined([make_pack([talk(5, 12)])], recipe_of("qwen3"))

    def loss_of(seed: int) -> float:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            return float(model(batch, False)[0])

    assert loss_of(1) == loss_of(1) != loss_of(2)
    model.eval()
    assert loss_of(1) == loss_of(2)


def test_a_pattern_of_the_learning_rate_reaches_one_of_the_pair() -> None:
    model = tiny_model("qwen3_vl", train={"default": "frozen", "llm": "lora", "vision": "lora"})
    optimizer = make_optimizer(model, OptimConfig(lr={"default": 1.0, "vision": 2.0, "lora_B": 16.0}))
    peak = {parameter: group["peak"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if is_lora(name):
            assert peak.pop(parameter) == (
                16.0 if ".lora_B." in name else 1.0 if part_of("qwen3_vl", name) == "llm" else 2.0
            )
    assert not peak


def test_a_part_with_lora_alone_is_a_trained_part() -> None:
    model = tiny_model("qwen3_vl", train={"default": "full", "vision": "lora", "aligner": "frozen"})
    parts = trained_parts(model)
    assert parts.keys() == {"llm", "vision"}
    assert len(parts["vision"]) == 2 * len(layers("qwen3_vl", {"default": "frozen", "vision": "lora"}))
