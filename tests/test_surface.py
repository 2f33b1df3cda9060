"""The Python surface: what `lmms.configs`, `lmms.prep` and `lmms.train` export, and that exporting costs nothing."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("configs", "prep", "train")


def names_for_types(package: str) -> set[str]:
    """What the `if TYPE_CHECKING` block of a package imports."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    return {alias.name for block in blocks for node in block.body for alias in getattr(node, "names", [])}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there_for_people_and_for_type_checkers(package: str) -> None:
    module = import_module(f"lmms.{package}")
    assert len(module.__all__) == len(set(module.__all__)) > 3
    assert list(module.__all__) == sorted(
        module.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name)
    )
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
    assert set(module.__all__) == names_for_types(package) == set(dir(module))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_says_what_it_is(package: str) -> None:
    module = import_module(f"lmms.{package}")
    assert [name for name in module.__all__ if len((getattr(module, name).__doc__ or "").split()) < 3] == []


def test_a_name_that_is_not_public_is_an_error_as_of_any_module() -> None:
    with pytest.raises(AttributeError, match=r"module 'lmms\.train' has no attribute 'trian'"):
        import_module("lmms.train").trian  # noqa: B018


def test_importing_the_packages_loads_nothing_but_this_page() -> None:
    code = f"""
import sys
import {", ".join(f"lmms.{package}" for package in PACKAGES)}
loaded = {{name for name in sys.modules if name.startswith("lmms.")}}
assert loaded == {{"lmms.configs", "lmms.configs.lazy", "lmms.prep", "lmms.train"}}, loaded
assert not {{"numpy", "yaml", "torch", "transformers", "polars", "pyarrow"}} & sys.modules.keys()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
