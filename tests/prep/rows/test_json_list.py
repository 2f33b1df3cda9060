"""A .json file: the text of each record of a list, whatever the record holds and wherever a block ends."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.errors import SourceError
from lmms.prep.rows import json_list
from lmms.prep.rows.json_list import holds_records, read_json


def texts(file: Path) -> list[bytes]:
    return [text for rows, _ in read_json(file) for text in rows]


def random_value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(6 if depth else 4)
    if kind < 3:
        return rng.choice([1.5, None, True, "", 'a"b\\', '[{,}]"', "ü\u2028\n\\", "x" * rng.randrange(60)])
    if kind == 3:
        return "\\" * rng.randrange(6)
    items = [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return items if kind == 4 else {f"k{i}": item for i, item in enumerate(items)}


@pytest.mark.parametrize("block", [1, 2, 7, 50, 2**20])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_cut_at_its_own_commas_wherever_a_block_ends(
    block: int, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(5)
    values = [random_value(rng, 3) for _ in range(60)]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(values, indent=indent, ensure_ascii=rng.random() < 0.5) + "\n", "utf-8")
    monkeypatch.setattr(json_list, "BLOCK", block)
    assert [json.loads(text) for text, _, _ in json_list._elements(file)] == values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", []),
        (" [ ] ", []),
        ('\ufeff[{"a": 1}]', [b'{"a": 1}']),
        ('[{"a": }, {"b": 1}]', [b'{"a": }', b'{"b": 1}']),
        ("[1,,2]", [b"1", b",", b"2"]),
        ("[1,]", [b"1", b","]),
        ('{"a": 1}\n{"a": 2}\n', [b'{"a": 1}', b'{"a": 2}']),
        ('{\n "a": [1]\n}\n', [b'{\n "a": [1]\n}']),
        ('{"a": 1}', [b'{"a": 1}']),
    ],
)
def test_lists_lines_and_one_object_are_read(text: str, expected: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, "utf-8")
    assert texts(tmp_path / "a.json") == expected


@pytest.mark.parametrize("text", ['[{"a": 1}', '[{"a": "', "[", '[{"a": 1},', '[{"a": "\\'])
def test_a_list_without_an_end_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(OSError, match="no end"):
        texts(tmp_path / "a.json")


def test_a_record_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text('["' + "x" * 5_000_000)
    monkeypatch.setattr(json_list, "MOST_BYTES", 2_000_000)
    with pytest.raises(SourceError, match=r"a\.json: record 0 of its list has more than 2000000 bytes"):
        texts(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"a": 1}]', True),
        ('{"a": 1}\n{"a": 2}', True),
        ("[1, 2]", False),
        ('{"a": 1}\n', False),
        ('{\n "a": {\n}}', False),
    ],
)
def test_a_list_of_records_is_told_from_other_json(text: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    assert holds_records(tmp_path / "a.json") == expected


@pytest.mark.parametrize("between", ["\n", " \r\n\r\n\t", "\n\n\n"])
def test_objects_over_several_lines_one_behind_the_other_are_an_error_that_says_so(
    between: str, tmp_path: Path
) -> None:
    one = json.dumps({"a": "}\n{ } {", "b": {"c": [{}, {}]}}, indent=2)
    file = tmp_path / "a.json"
    file.write_text(one)
    assert texts(file) == [one.encode()]
    file.write_text(one + between + one + "\n")
    with pytest.raises(SourceError, match=r"a\.json holds several JSON objects.*jq -s"):
        texts(file)
