"""A config.json that describes no model is an error that names it."""

import json
from pathlib import Path

import pytest

from lmms.configs.errors import ModelError
from lmms.train.model.folder import model_of
from tests.kit.model.models import FAMILIES, tiny_config


def write_config(folder: Path, family: str, **changes: object) -> None:
    """A tiny config, with these keys of the language model changed."""
    body = tiny_config(family).to_dict()
    body.get("text_config", body).update(changes)
    (folder / "config.json").write_text(json.dumps(body))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_the_one_that_the_config_describes(tmp_path: Path, family: str) -> None:
    write_config(tmp_path, family, vocab_size=80)
    model = model_of(tmp_path, "none")
    assert model.hf.config.get_text_config().vocab_size == 80
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "wide"},
        {"hidden_size": -1},
        {"num_attention_heads": 0},
        {"hidden_act": "nope"},
        {"layer_types": ["nope"]},
        {"layer_types": 3},
        {"dtype": "nope"},
        {"pad_token_id": 10**9},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["qwen3", "qwen3_vl"])
def test_a_bad_value_is_an_error_that_names_the_file(tmp_path: Path, family: str, change: dict[str, object]) -> None:
    write_config(tmp_path, family, **change)
    with pytest.raises(ModelError, match=r"config\.json describes no model that can be built \(\w+: "):
        model_of(tmp_path, "none")


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_config_that_is_no_table_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json describes no model"):
        model_of(tmp_path, "none")


@pytest.mark.parametrize("family", FAMILIES[2:])
def test_a_family_with_towers_needs_a_language_model(tmp_path: Path, family: str) -> None:
    body = tiny_config(family).to_dict()
    text = body.pop("text_config")
    (tmp_path / "config.json").write_text(json.dumps(body))
    with pytest.raises(ModelError, match=r"config\.json has no text_config"):
        model_of(tmp_path, "none")
    if family in ("qwen2_vl", "qwen2_5_vl"):
        text.pop("model_type", None)
        (tmp_path / "config.json").write_text(json.dumps({**text, **body}))
        assert model_of(tmp_path, "none").hf.config.get_text_config().hidden_size == 32
