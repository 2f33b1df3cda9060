"""A family is a line in three tables and a value on each side. Nothing else in prep and train knows models by name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmms.configs.by_part import PARTS
from lmms.configs.contract.families import FAMILIES, trained_as
from lmms.prep.render.families import FAMILIES as OF_PREP
from lmms.train.families import FAMILIES as OF_TRAIN
from lmms.train.model.build import build_model
from tests.kit.model.models import FAMILIES as OF_TESTS
from tests.kit.model.models import part_of, tiny_config

ROOT = Path(__file__).resolve().parents[1]
OF_FAMILIES = (ROOT / "train" / "families", ROOT / "prep" / "render" / "families")
MODEL_NAMES = ("qwen", "visual", "merger", "fullatt", "deepstack", "audio_tower", "projector")
"""Names of models and of modules that not every model has."""


def test_every_family_has_a_value_on_both_sides_and_a_tiny_model() -> None:
    assert set(FAMILIES) == set(OF_PREP) == set(OF_TRAIN)
    assert {trained_as(family) for family in FAMILIES} == set(OF_TESTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_halves_share_of_a_family_is_what_its_models_have(family: str) -> None:
    model = build_model(tiny_config(family), "none")
    assert {part_of(family, name) for name, _ in model.named_parameters()} == set(FAMILIES[family].parts)
    assert {part.name for part in OF_TRAIN[family].parts} == set(FAMILIES[family].parts) <= set(PARTS)
    assert (OF_TRAIN[family].images is not None) == ("image" in FAMILIES[family].placeholders)
    assert (OF_TRAIN[family].sounds is not None) == ("audio" in FAMILIES[family].placeholders)


def model_names(source: str) -> list[str]:
    """The places of a source that ask for a model or its modules by name: strings (but for docs), imports, attributes,
    comparisons of a model_type."""
    tree = ast.parse(source)
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        f"{getattr(node, 'lineno', 0)}: {text}"
        for node in ast.walk(tree)
        if id(node) not in docs
        for text in words(node)
        # How many tokens stand for images is a column of the sidecar.
        if any(name in text.lower().replace("visual_tokens", "") for name in MODEL_NAMES) or text == "model_type =="
    ]


def words(node: ast.AST) -> Iterator[str]:
    """What a node says that may be a model's name."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.Attribute(attr=name) | ast.alias(name=name):
            yield name
        case ast.Compare(left=left, comparators=others):
            asked = [side for side in (left, *others) if isinstance(side, ast.Attribute) and side.attr == "model_type"]
            yield from ["model_type =="] * len(asked)


@pytest.mark.parametrize("room", ["prep", "train"])
def test_no_file_but_those_of_families_knows_a_model_by_name(room: str) -> None:
    files = [file for file in sorted((ROOT / room).rglob("*.py")) if file.parent not in OF_FAMILIES]
    assert len(files) > 20
    asked = {str(file.relative_to(ROOT)): model_names(file.read_text(encoding="utf-8")) for file in files}
    assert {file: names for file, names in asked.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ('"""Qwen2.5-VL: windows."""\nx: int\n"""Of Qwen3-VL."""', []),
        ('if config.model_type == "text":\n    pass', ["1: model_type =="]),
        ('if family in ("qwen2_vl",):\n    pass', ["1: qwen2_vl"]),
        ("from lmms.train.families import qwen3_vl", ["1: qwen3_vl"]),
        ("hf.model.visual.blocks", ["1: visual"]),
        ('name.startswith("merger.")', ["1: merger."]),
        ("plan.visual_tokens + log.visual_tokens_per_s", []),
    ],
)
def test_the_rule_sees(source: str, names: list[str]) -> None:
    assert model_names(source) == names
