"""Plain words: a doc string begins with what it is about, and a name says what a thing is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSES = ("configs", "prep", "train", "cli", "tools")
FIRST_WORDS = {"Of", "Where", "Those", "That", "By", "As", "Beside"}
"""A sentence that begins with one of them needs the line above it to be understood."""
EMPTY_NAMES = {"found", "own", "one", "held", "seen", "brought", "anew"}
"""They say how a thing came, not what it is."""


def doc_strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every string that stands alone: of modules, classes, functions and fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every variable and parameter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def faults(source: str) -> list[str]:
    tree = ast.parse(source)
    words = [f"{line}: {text.split()[0]} ..." for line, text in doc_strings(tree) if text.split()[0] in FIRST_WORDS]
    return words + [f"{line}: {name}" for line, name in names(tree) if name in EMPTY_NAMES]


@pytest.mark.parametrize("house", HOUSES)
def test_doc_strings_and_names_are_plain(house: str) -> None:
    files = sorted((ROOT / house).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): faults(file.read_text(encoding="utf-8")) for file in files}
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_the_rule_sees() -> None:
    assert faults('step: int\n"""Of the whole run."""') == ["2: Of ..."]
    assert faults('step: int\n"""Steps of the whole run."""') == []
    assert faults("found = [1]") == ["1: found"]
    assert faults("def f(own): pass") == ["1: own"]
    assert faults("[one for one in many]") == ["1: one"]
