"""Fixtures that every room uses. What needs ../shared skips, with the reason, where that folder is absent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Before anything imports torch, and for all processes that tests start: they run beside one another, and the models are
# tiny, so that threads of one only wait for those of another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real conversations, pictures and model files beside the checkout."""
    if not (SHARED / "models" / "materialize.py").is_file():
        pytest.skip("needs the real data and tokenizers of ../shared, which is absent here")
    return SHARED


@pytest.fixture(scope="session")
def model_folders(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Complete model folders (tokenizer, template, processor, config; no weights) by name."""
    target = tmp_path_factory.mktemp("models")
    names = ["qwen2.5-text", "qwen3-text", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen2-audio", "qwen2.5-omni"]
    subprocess.run([sys.executable, shared / "models" / "materialize.py", target, *names], check=True, stdout=-3)
    return {name: target / name for name in names}
