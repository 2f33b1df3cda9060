"""An exported folder is the trained model for transformers 4 and 5 alike, each in a process of its own."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from lmms.train.checkpoint.export import export
from lmms.train.checkpoint.model_folder import exported_config
from lmms.train.checkpoint.pretrained import load_pretrained
from lmms.train.checkpoint.read import checkpoint_name, load_checkpoint, model_shapes, tensors_of
from lmms.train.model.build import materialize
from lmms.train.model.folder import model_of
from lmms.train.model.forward import last_hidden_state
from lmms.train.model.lora import add_lora
from lmms.train.run import train
from tests.kit.model.hub_models import hub_config, write_hub_model
from tests.kit.model.models import VISION_FAMILIES, joined, make_pack, picture, talk, tiny_recipe
from tests.kit.model.readers import inputs_of, read_logits, transformers_4
from tests.kit.runs import run_config, silent, write_run


@dataclass(frozen=True)
class Case:
    family: str
    tied: bool
    lora: bool = False
    files: int = 1
    saved_by_5: bool = False
    """Whether transformers 5 saved the source's config.json."""


CASES = (
    Case("qwen2", tied=False),
    Case("qwen2", tied=True, lora=True),
    Case("qwen3", tied=True, files=2),
    Case("qwen2_vl", tied=False),
    Case("qwen2_vl", tied=True, lora=True),
    Case("qwen2_5_vl", tied=True, files=2),
    Case("qwen2_5_vl", tied=False, lora=True, saved_by_5=True),
    Case("qwen3_vl", tied=False),
    Case("qwen3_vl", tied=True, lora=True),
)


@dataclass(frozen=True)
class Exported:
    source: Path
    folder: Path
    inputs: dict[str, torch.Tensor]
    logits: torch.Tensor
    """Of the model as it was trained."""


def exported(folder: Path, case: Case) -> Exported:
    """What a run of one step on a model as the hub has it gives."""
    settings = write_run(folder, case.family, tied=case.tied) | {"model.init": "pretrained"}
    config_file = folder / "model" / "config.json"
    saved = config_file.read_text()
    write_hub_model(folder / "model", case.family, case.tied, seed=2, files=case.files)
    if case.saved_by_5:
        config_file.write_text(saved)
    if case.lora:
        settings |= {"train": {"default": "lora"}, "lora.rank": 4}
    config = run_config(settings, max_steps=1, optim__lr=0.05)
    train(config, silent)
    checkpoint = folder / "out" / checkpoint_name(1)
    trained = model_of(folder / "model", "none")
    add_lora(trained, config.train, config.lora)
    materialize(trained, torch.device("cpu"))
    if case.lora:
        load_pretrained(trained.hf, folder / "model")
    load_checkpoint(checkpoint, tensors_of(trained, None, model_shapes(checkpoint)), alone=True)
    images = [picture(1)] if case.family in VISION_FAMILIES else []
    batch = joined([make_pack([talk(5, 24, images)])], tiny_recipe(case.family))
    with torch.no_grad():
        logits = trained.eval().hf.lm_head(last_hidden_state(trained.hf, batch, batch.images > 0))
    out = export(checkpoint, folder / "exported", merged=case.lora)
    return Exported(folder / "model", out, inputs_of(case.family, batch), logits)


def stored_names(folder: Path) -> dict[str, list[str]]:
    """File name -> names of the tensors in it."""
    names = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names[path.name] = sorted(file.keys())
    return names


def test_both_major_versions_of_transformers_read_the_trained_model(tmp_path: Path) -> None:
    made = [exported(tmp_path / str(number), case) for number, case in enumerate(CASES)]
    for one in made:
        assert stored_names(one.folder) == stored_names(one.source)
        assert (one.folder / "model.safetensors.index.json").is_file() == (len(stored_names(one.source)) > 1)
    for environment in ({}, transformers_4(tmp_path)):
        version, read = read_logits({one.folder: one.inputs for one in made}, environment)
        assert version.split(".")[0] == ("4" if environment else "5")
        for case, one, logits in zip(CASES, made, read, strict=True):
            difference = float((logits - one.logits).abs().max())
            assert difference < 1e-4, f"transformers {version}, {case}: logits differ by {difference}"


def test_a_config_keeps_its_keys_and_takes_the_type_of_the_weights() -> None:
    for family in ("qwen2", "qwen2_5_vl"):
        source = hub_config(family, tied=True)
        assert exported_config(source, "float32") == {**source, "torch_dtype": "float32"}
    nested = hub_config("qwen3_vl", tied=True)
    text = {**nested["text_config"], "dtype": "float32"}
    assert exported_config(nested, "float32") == {**nested, "text_config": text, "torch_dtype": "float32"}


@pytest.mark.parametrize(
    ("rope", "older"),
    [
        ({"rope_type": "default"}, None),
        ({"rope_type": "default", "mrope_section": [2, 1, 1]}, {"rope_type": "default", "mrope_section": [2, 1, 1]}),
        ({"rope_type": "yarn", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}),
    ],
)
def test_a_config_that_transformers_5_saved_gets_the_older_keys(rope: dict[str, Any], older: dict[str, Any]) -> None:
    text = {"dtype": "float32", "rope_parameters": {**rope, "rope_theta": 5e6}}
    found = exported_config({"text_config": text}, "bfloat16")["text_config"]
    assert found == {**text, "dtype": "bfloat16", "rope_theta": 5e6, "rope_scaling": older}


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_umask_decides_who_reads_a_run_and_its_exports(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        case = exported(tmp_path, Case("qwen2", tied=False, lora=True))
        export(tmp_path / "out" / checkpoint_name(1), tmp_path / "adapter")
    finally:
        os.umask(before)
    paths = [path for folder in (tmp_path / "out", case.folder, tmp_path / "adapter") for path in folder.rglob("*")]
    assert {"adapter_model.safetensors", "model.safetensors", ".metadata"} <= {path.name for path in paths}
    expected = {path: (0o777 if path.is_dir() else 0o666) & ~umask for path in paths}
    assert {path: stat.S_IMODE(path.stat().st_mode) for path in paths} == expected
