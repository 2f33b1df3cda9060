"""A chat template that a build was given: it goes with the shards, the checkpoints and the exported model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lmms.configs.contract.manifest import TEMPLATE_NAME, open_dataset
from lmms.configs.errors import ConfigError, DatasetError, ModelError
from lmms.configs.load import load_config
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.train import TrainConfig
from lmms.prep.build import build_shards
from lmms.train.checkpoint.export import export
from lmms.train.checkpoint.read import checkpoint_name
from lmms.train.plan.fit import fitting_model
from lmms.train.run import train
from tests.kit.folders import TOOL_TEMPLATE, tiny_model_folder
from tests.kit.runs import silent

CALL = {"function": {"name": "weather", "arguments": "{}"}}


def config_of(folder: Path, out: str = "shards", **settings: Any) -> PrepConfig:
    turns = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    (folder / "a.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    (folder / "mine.jinja").write_text(TOOL_TEMPLATE)
    model = str(tiny_model_folder(folder))
    config = PrepConfig(sources=(str(folder / "a.jsonl"),), model=model, seq_len=64, out=str(folder / out), workers=0)
    return replace(config, chat_template=str(folder / "mine.jinja"), **settings)


def test_a_given_template_goes_from_the_build_to_the_exported_model(tmp_path: Path) -> None:
    build_shards(config_of(tmp_path))
    dataset = open_dataset(tmp_path / "shards")
    assert fitting_model(str(tmp_path / "model"), dataset).chat_template == TOOL_TEMPLATE
    run = {
        "model": {"path": str(tmp_path / "model"), "init": "random"},
        "data": {"shards": str(tmp_path / "shards"), "global_packs": 1, "workers": 0},
        "output": str(tmp_path / "out"),
        "max_steps": 1,
    }
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    train(load_config(TrainConfig, tmp_path / "run.yaml"), silent)
    (tmp_path / "model" / "additional_chat_templates").mkdir()
    (tmp_path / "model" / "additional_chat_templates" / "tool_use.jinja").write_text("{# old #}")
    exported = export(tmp_path / "out" / checkpoint_name(1), tmp_path / "exported")
    assert AutoTokenizer.from_pretrained(exported).chat_template == TOOL_TEMPLATE
    assert [path.name for path in exported.glob("*chat_template*")] == ["chat_template.jinja"]
    assert "chat_template" not in json.loads((exported / "tokenizer_config.json").read_text())


def test_a_damaged_template_of_shards_is_an_error(tmp_path: Path) -> None:
    build_shards(config_of(tmp_path))
    (tmp_path / "shards" / TEMPLATE_NAME).write_text(TOOL_TEMPLATE.replace("tools", "tolls"))
    with pytest.raises(DatasetError, match=r"chat_template\.jinja is damaged"):
        fitting_model(str(tmp_path / "model"), open_dataset(tmp_path / "shards"))


def test_a_template_that_is_missing_or_no_template_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nosuch\.jinja cannot be read"):
        build_shards(replace(config_of(tmp_path), chat_template=str(tmp_path / "nosuch.jinja")))
    (tmp_path / "bad.jinja").write_text("{% for %}")
    with pytest.raises(ModelError, match="not valid Jinja"):
        build_shards(replace(config_of(tmp_path), chat_template=str(tmp_path / "bad.jinja")))


def test_sets_with_two_templates_do_not_train_together(tmp_path: Path) -> None:
    build_shards(config_of(tmp_path))
    (tmp_path / "other.jinja").write_text(TOOL_TEMPLATE.replace("{{ m.content }}", "-{{ m.content }}"))
    build_shards(replace(config_of(tmp_path, out="others"), chat_template=str(tmp_path / "other.jinja")))
    sets = [{"shards": str(tmp_path / name), "weight": 1} for name in ("shards", "others")]
    run = {
        "model": {"path": str(tmp_path / "model"), "init": "random"},
        "data": {"mixture": sets, "global_packs": 1, "workers": 0},
        "output": str(tmp_path / "out"),
        "max_steps": 1,
    }
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    with pytest.raises(ModelError, match="different chat templates"):
        train(load_config(TrainConfig, tmp_path / "run.yaml"), silent)


def test_a_keyword_that_the_template_does_not_read_is_an_error_before_reading(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not read 'enable_thinking'; it reads no options"):
        build_shards(config_of(tmp_path, template_options={"enable_thinking": True}))
