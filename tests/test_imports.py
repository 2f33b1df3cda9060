"""The rooms and who may look into which: cli -> prep, train -> configs. Nothing imports cli; prep and train never meet.

prep never loads torch or transformers, nor does `lmms --help`: they cost seconds at every start and gigabytes on a
machine that only builds shards.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "configs": {"configs"},
    "prep": {"prep", "configs"},
    "train": {"train", "configs"},
    "cli": {"cli", "prep", "train", "configs"},
}
CONFIGS_LIBRARIES = {
    *("numpy", "xxhash", "yaml", "huggingface_hub"),
    *("obstore", "fsspec", "paramiko", "ocifs", "oci", "databricks", "requests"),
}
"""All that the ground floor may load besides the standard library; the second line where a URL is read."""
HEAVY = {"torch", "torchvision", "transformers", "streaming", "liger_kernel", "flash_attn"}


def imported_modules(source: str) -> set[str]:
    """Full names of all modules that a source imports anywhere, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module == "lmms":
            names |= {f"lmms.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def forbidden_imports(room: str, source: str) -> list[str]:
    """The imports of a source that its room does not allow, sorted."""
    return sorted(name for name in imported_modules(source) if not is_allowed(room, name))


def is_allowed(room: str, name: str) -> bool:
    library, *inside = name.split(".")
    if library == "lmms":
        return bool(inside) and inside[0] in MAY_IMPORT[room]
    if room == "configs":
        return library in sys.stdlib_module_names | CONFIGS_LIBRARIES
    return library != "" and library not in MAY_IMPORT and (room != "prep" or library not in HEAVY)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_every_file_of_a_room_keeps_to_its_imports(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): forbidden_imports(room, file.read_text(encoding="utf-8")) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("room", "source", "forbidden"),
    [
        ("configs", "import json\nimport numpy as np\nfrom lmms.configs.errors import ConfigError", []),
        ("configs", "import polars", ["polars"]),
        ("configs", "from lmms.prep import plan", ["lmms.prep"]),
        ("prep", "def f():\n    from torch.nn import functional", ["torch.nn"]),
        ("prep", "if True:\n    import transformers", ["transformers"]),
        ("prep", "from lmms import train", ["lmms.train"]),
        ("prep", "import lmms", ["lmms"]),
        ("prep", "from train import order", ["train"]),
        ("prep", "from . import plan", ["."]),
        ("train", "import torch\nfrom lmms.prep.plan import pack", ["lmms.prep.plan"]),
        ("train", "import lmms.cli.ui", ["lmms.cli.ui"]),
        ("cli", "from lmms.prep import build\nfrom lmms.train import run\nimport torch", []),
    ],
)
def test_the_rule_sees(room: str, source: str, forbidden: list[str]) -> None:
    assert forbidden_imports(room, source) == forbidden


def loaded_after(code: str) -> set[str]:
    """Which of the heavy libraries a fresh process has loaded at the end of `code`."""
    report = "import sys; print('loaded', *(name for name in sys.argv[1:] if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", f"{code}\n{report}", *sorted(HEAVY)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split()[1:])


def test_a_fresh_process_that_loads_a_heavy_library_is_seen() -> None:
    assert loaded_after("import types, sys; sys.modules['torch'] = types.ModuleType('torch')") == {"torch"}


def test_no_module_of_prep_loads_a_heavy_library() -> None:
    files = sorted((ROOT / "prep").rglob("*.py"))
    modules = [".".join(("lmms", *file.relative_to(ROOT).with_suffix("").parts)) for file in files]
    assert loaded_after("\n".join(f"import {module.removesuffix('.__init__')}" for module in modules)) == set()


def test_the_command_line_loads_no_heavy_library() -> None:
    assert loaded_after("import lmms.cli.main") == set()


@pytest.mark.parametrize("command", ["", "prep", "train", "inspect"])
def test_help_loads_no_heavy_library(command: str) -> None:
    """Click leaves by SystemExit(0) after it has printed the help."""
    arguments = [*command.split(), "--help"]
    code = f"""
import sys
from lmms.cli.main import main
names, sys.argv[1:] = sys.argv[1:], {arguments!r}
try:
    main()
except SystemExit as exit:
    assert exit.code in (0, None), exit.code
sys.argv[1:] = names
"""
    assert loaded_after(code) == set()
