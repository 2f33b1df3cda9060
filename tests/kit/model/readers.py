"""What a process of its own makes of model folders, with this environment's transformers or with transformers 4."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from lmms.train.batch.batch import Batch
from lmms.train.batch.images import normalised
from lmms.train.batch.vision import Pictures
from tests.kit.model.models import tiny_config

_TRANSFORMERS_4 = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.2")
"""With the torch that is here: 69 MB, of which uv links most from its cache."""

_READ = """
import inspect, json, sys
import torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
for folder in sys.argv[1:]:
    sees = hasattr(AutoConfig.from_pretrained(folder), "vision_config")
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert not any(info.values()), (folder, info)
    known = inspect.signature(model.forward).parameters
    inputs = {name: value for name, value in torch.load(folder + ".inputs").items() if name in known}
    with torch.no_grad():
        torch.save(model.float().eval()(**inputs).logits, folder + ".logits")
print(transformers.__version__)
"""


def inputs_of(family: str, batch: Batch) -> dict[str, torch.Tensor]:
    """A batch as the model of a family itself takes it."""
    if batch.vision is None:
        return {"input_ids": batch.input_ids}
    vision = batch.vision
    if batch.sounds is not None:
        return {
            "input_ids": batch.input_ids,
            "attention_mask": torch.ones_like(batch.input_ids),
            "pixel_values": _pixels(vision),
            "image_grid_thw": vision.grid_thw,
        }
    return {
        "input_ids": batch.input_ids,
        "pixel_values": _pixels(vision),
        "image_grid_thw": vision.grid_thw,
        "mm_token_type_ids": (batch.input_ids == tiny_config(family).image_token_id).int(),
    }


def _pixels(vision: Pictures) -> torch.Tensor:
    return normalised(vision.patches, vision.pixel_constants, vision.temporal_patch_size, vision.frames)


def transformers_4(folder: Path) -> dict[str, str]:
    """The environment of a process that finds transformers 4 first, installed into this folder.

    The test is skipped where it cannot be: without uv, or where no registry is reached.
    """
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("transformers 4 is installed with uv, which is not here")
    # Not from the folder of the project: its overrides would make it transformers 5.
    command = [uv, "pip", "install", "--python", sys.executable, "--no-deps", "--target", "packages", *_TRANSFORMERS_4]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if run.returncode:
        pytest.skip(f"transformers 4 could not be installed: {run.stderr.strip().splitlines()[-1]}")
    return {"PYTHONPATH": str(folder / "packages")}


def read_logits(
    folders: Mapping[Path, dict[str, torch.Tensor]], environment: Mapping[str, str]
) -> tuple[str, list[torch.Tensor]]:
    """(version of transformers, the logits of each model folder for its inputs) in one process."""
    for folder, inputs in folders.items():
        torch.save(inputs, f"{folder}.inputs")
    run = subprocess.run(
        [sys.executable, "-c", _READ, *map(str, folders)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()[-1], [torch.load(f"{folder}.logits") for folder in folders]
