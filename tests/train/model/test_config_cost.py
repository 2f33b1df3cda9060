"""What prep reads off a config.json is what train reads off the layers of the model."""

import json
from itertools import combinations
from pathlib import Path

import pytest
from transformers import AutoConfig, PretrainedConfig

from lmms.configs.contract.costs import _AUDIO_TOWERS, _TOWERS, config_cost, folder_cost
from lmms.configs.contract.families import FAMILIES, trained_as
from lmms.configs.errors import ConfigError, ModelError
from lmms.train.model.build import build_model
from lmms.train.model.flops import model_cost
from tests.kit.model.models import frozen, tiny_config


def assert_costs_are_equal(config: PretrainedConfig, folder: Path) -> None:
    model = build_model(config, "none")
    parts = FAMILIES[config.model_type].parts
    for count in range(len(parts) + 1):
        for of_which in combinations(parts, count):
            expected = model_cost(model, frozen(*of_which))
            assert folder_cost(folder, dict.fromkeys(of_which, "frozen")) == expected, of_which


def test_every_family_has_its_arithmetic() -> None:
    assert set(_TOWERS) == set(FAMILIES)
    for towers, kind in ((_TOWERS, "image"), (_AUDIO_TOWERS, "audio")):
        having = {name for name, tower in towers.items() if tower}
        assert having == {name for name, facts in FAMILIES.items() if kind in facts.placeholders}


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_cost_the_same_by_their_config_whatever_is_frozen(family: str, tmp_path: Path) -> None:
    config = tiny_config(family)
    config.save_pretrained(tmp_path)
    assert_costs_are_equal(config, tmp_path)


def test_real_models_cost_the_same_by_their_config_whatever_is_frozen(shared: Path, tmp_path: Path) -> None:
    files = [*(shared / "models").glob("*/config.json"), *(shared / "models").glob("*/configs/*.json")]
    known = [file for file in files if json.loads(file.read_text("utf-8")).get("model_type") in FAMILIES]
    types = {json.loads(file.read_text("utf-8"))["model_type"] for file in known}
    assert {trained_as(name) for name in types} == {trained_as(name) for name in FAMILIES}
    for file in known:
        (tmp_path / "config.json").write_bytes(file.read_bytes())
        whole = AutoConfig.from_pretrained(tmp_path)
        assert_costs_are_equal(getattr(whole, "thinker_config", whole), tmp_path)


def test_a_config_without_a_size_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"num_hidden_layers None, expected a whole number above 0.*plan: tight"):
        config_cost({"model_type": "qwen2", "num_attention_heads": 2, "hidden_size": 8})


def test_a_part_that_a_model_does_not_have_is_refused(tmp_path: Path) -> None:
    tiny_config("qwen3").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="cost_of names 'vision', which this model does not have; it has llm"):
        folder_cost(tmp_path, {"vision": "frozen"})
