"""Small things that several rooms' tests need."""

import shutil
from pathlib import Path

DEMO_MODEL = Path(__file__).resolve().parents[1] / "cli" / "demo" / "model"


def tiny_model_folder(parent: Path) -> Path:
    """A copy of the package's tiny Qwen3-VL type model folder (tokenizer, template, processor, config; no weights)."""
    folder = parent / "model"
    if not folder.exists():
        shutil.copytree(DEMO_MODEL, folder)
    return folder
