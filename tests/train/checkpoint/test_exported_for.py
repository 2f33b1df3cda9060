"""An exported folder is the trained model for transformers 4 and 5 alike, each in a process of its own."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from lmms.train.checkpoint.export import export
from lmms.train.checkpoint.pretrained import load_pretrained
from lmms.train.checkpoint.read import checkpoint_name, load_checkpoint, model_shapes, tensors_of
from lmms.train.model.build import materialize
from lmms.train.model.folder import model_of
from lmms.train.model.forward import last_hidden_state
from lmms.train.model.lora import add_lora
from lmms.train.run import train
from tests.kit.hub_models import write_hub_model
from tests.kit.models import VISION_FAMILIES, joined, make_pack, picture, talk, tiny_recipe
from tests.kit.readers import inputs_of, read_logits, transformers_4
from tests.kit.runs import run_config, silent, write_run


@dataclass(frozen=True)
class Case:
    family: str
    tied: bool
    lora: bool = False
    files: int = 1


CASES = (
    Case("qwen2", tied=False),
    Case("qwen2", tied=True, lora=True),
    Case("qwen3", tied=True, files=2),
    Case("qwen2_vl", tied=False),
    Case("qwen2_vl", tied=True, lora=True),
    Case("qwen2_5_vl", tied=True, files=2),
    Case("qwen2_5_vl", tied=False, lora=True),
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
    write_hub_model(folder / "model", case.family, case.tied, seed=2, files=case.files)
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
