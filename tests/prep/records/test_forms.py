"""Forms: records as other systems write them, in the normal form that those systems read out of them."""

import json
import re
from typing import Any, get_args

import pytest

from lmms.configs.settings.sources import FormName
from lmms.prep.media.resize import Ask
from lmms.prep.records.forms import FORMS, columns_read, normal_form
from lmms.prep.records.normal.turns import MEDIA_COLUMNS
from lmms.prep.records.parts import Audio
from lmms.prep.records.read import read_record
from tests.kit.forms.read import reading, rejected, turns
from tests.kit.forms.table import EXAMPLES, ROWS
from tests.kit.forms.turns import CALL, IMAGE, A, Turn, chat, said


@pytest.mark.parametrize(("form", "record", "expected"), ROWS)
def test_a_record_of_another_system_is_read_as_that_system_reads_it(
    form: FormName, record: dict[str, Any], expected: list[Turn]
) -> None:
    before = json.dumps(record, default=repr)
    assert turns(form, record) == expected
    assert json.dumps(record, default=repr) == before, "reading a record changes it"


@pytest.mark.parametrize(("form", "record", "expected"), ROWS)
def test_a_table_that_has_only_the_columns_of_its_form_gives_the_same(
    form: FormName, record: dict[str, Any], expected: list[Turn]
) -> None:
    """Of any other column a table says only whether a row has a value."""
    columns = columns_read(reading(form))
    row = {name: value if name in columns or value is None else True for name, value in record.items()}
    assert turns(form, row) == expected


def shows_a_picture(expected: list[Turn]) -> bool:
    """Whether an assistant's turn has a picture, which no model here writes."""
    return any(IMAGE in content for role, content in expected if role == A and isinstance(content, list))


def pictures_of(record: dict[str, Any]) -> list[Any]:
    """What the column of pictures holds, in order."""
    column = record.get("images") or record.get("image")
    entries = json.loads(column) if isinstance(column, str) and column.startswith("[") else column
    entries = entries if isinstance(entries, list) else [entries]
    values = [entry["bytes"] or entry["path"] if isinstance(entry, dict) else entry for entry in entries]
    return [value for value in values if value]


@pytest.mark.parametrize(("form", "record", "expected"), ROWS)
def test_an_example_becomes_a_record_with_its_pictures_and_sounds_in_order(
    form: FormName, record: dict[str, Any], expected: list[Turn]
) -> None:
    if shows_a_picture(expected):
        assert rejected(form, record)[0] == "image_in_assistant"
        return
    read = read_record(record, reading(form))
    assert {f"column {name}" for name in MEDIA_COLUMNS}.isdisjoint(read.unused)
    images, pictures = read.images, pictures_of(record)
    assert len(images) == len(re.findall(r"\('image(?:_url)?',\)|\('picture', ", repr(expected)))
    assert [image.ref.value for image in images] == pictures or not pictures
    media = [part for message in getattr(read, "messages", ()) for part in message.media]
    sounds = [part.ref.value for part in media if isinstance(part, Audio)]
    assert sounds == re.findall(r"\w+\.wav", repr(record))
    assert len(sounds) == len(re.findall(r"\('audio(?:_url)?',\)", repr(expected)))


def test_every_form_has_twenty_examples() -> None:
    assert set(EXAMPLES) == set(FORMS) == set(get_args(FormName))
    assert {form: len(examples) for form, examples in EXAMPLES.items() if len(examples) < 20} == {}


def test_the_prompt_of_trl_is_context_only() -> None:
    record = {"prompt": chat("a", "x", "c"), "completion": chat(None, "b")[1:]}
    assert [message.weight for message in read_record(record, reading("trl")).messages] == [0, 0, 0, 1]


def test_a_role_of_the_users_own_map_is_not_renamed_by_the_form() -> None:
    record = {"conversations": [*said("a", "b"), {"from": "observation", "value": "c"}]}
    assert [role for role, _ in turns("sharegpt", record)] == ["user", "assistant", "tool"]
    found = turns("sharegpt", record, roles={"observation": "user"})
    assert [role for role, _ in found] == ["user", "assistant", "observation"]
    record = {"conversations": [*said("a"), {"from": "function_call", "value": "no JSON"}]}
    assert turns("sharegpt", record, roles={"function_call": "assistant"})[1] == ("function_call", "no JSON")


def test_calls_in_a_row_have_the_flags_of_the_first() -> None:
    calls = [{"role": "tool_call", "content": CALL, "loss": False}, {"role": "tool_call", "content": CALL}]
    (_, message) = normal_form({"messages": [*chat("a"), *calls]}, reading("swift")).record["messages"]
    assert (len(message["tool_calls"]), message["loss"]) == (2, False)


def test_reasoning_parts_of_llamafactory_become_reasoning() -> None:
    parts = [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "b"}]
    record = {"messages": chat([{"type": "text", "value": "a"}], parts)}
    answer = read_record(record, reading("llamafactory")).messages[1]
    assert (answer.reasoning, answer.text) == ("hm", "b")


def test_the_address_that_lmms_engine_leaves_out_takes_no_size_with_it() -> None:
    part = {"type": "image_url", "image_url": {"url": "x"}, "max_pixels": 100_000}
    (image,) = read_record({"messages": chat([part], "b"), "image": b"x"}, reading("lmms_engine")).images
    assert image.ask == Ask(None, 100_000)
    assert rejected("lmms_engine", {"messages": chat([{**part, "crop": 3}], "b"), "image": b"x"})[0] == "bad_part"


@pytest.mark.parametrize("targets", ["assistant", "all", "last"])
def test_no_turn_of_trls_prompt_is_learned_whatever_the_targets(targets: str) -> None:
    record = {"prompt": [{**turn, "weight": 1} for turn in chat("a", "x", "c")], "completion": chat(None, "b")[1:]}
    messages = read_record(record, reading("trl", targets=targets)).messages
    assert [message.weight for message in messages] == [0, 0, 0, 1]
