"""Columns beside the turns: kept, read or noted, whatever the form."""

import pytest

from lmms.configs.settings.sources import FormName
from lmms.prep.records.forms import normal_form
from lmms.prep.records.read import read_record
from lmms.prep.records.record import Record
from lmms.prep.transforms.turns import with_question
from tests.kit.forms.read import reading, rejected, turns
from tests.kit.forms.turns import A, S, U, chat, said


def test_other_keys_and_columns_are_kept_for_the_parser() -> None:
    turn = {"from": "gpt", "value": "b", "loss_weight": 0.5, "ts": 3}
    record = {"conversations": [*said("a"), turn], "tools": "[]", "weight": 2, "source": "x", "id": 7}
    normal = normal_form(record, reading("sharegpt")).record
    assert normal["messages"][1] == {"role": "assistant", "content": "b", "loss_weight": 0.5, "ts": 3}
    assert {name: normal[name] for name in ("tools", "weight", "source", "id")} == {
        "tools": "[]", "weight": 2, "source": "x", "id": 7,
    }  # fmt: skip
    assert "column source" in read_record(record | {"weight": 1}, reading("sharegpt")).unused


def test_a_picture_has_its_place_in_the_record_as_it_was() -> None:
    record = {"image": ["a.jpg", "b.jpg"], "system": "s", "conversations": said("<image>a", "b", "c<image>", "d")}
    images = read_record(record, reading("llava")).images
    assert [(image.ref.value, image.place) for image in images] == [
        ("a.jpg", "conversations[0].value"), ("b.jpg", "conversations[2].value"),
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["trl", "llamafactory", "lmms_engine", "anthropic", "sharegpt", "swift", "veomni"])
@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_column_is_the_first_turn_in_every_form(form: FormName, column: str) -> None:
    record = read_record({"messages": chat("a", "b"), column: "s"}, reading(form))
    assert [(m.role, m.text) for m in record.messages] == [(S, "s"), (U, "a"), (A, "b")]
    assert record.unused == ()


@pytest.mark.parametrize("form", ["openai", "anthropic", "sharegpt", "llava", "lmms_engine"])
def test_a_system_turn_counts_more_than_the_column_which_is_noted(form: FormName) -> None:
    turn = {"role": "developer", "content": "t"}
    given = reading(form, roles={"developer": "system"})
    record = read_record({"messages": [turn, *chat("a", "b")], "system": "s"}, given)
    assert [(m.role, m.text) for m in record.messages] == [(S, "t"), (U, "a"), (A, "b")]
    assert record.unused == ("column system",)


def test_anthropic_tools_become_functions_without_what_only_the_service_reads() -> None:
    cache = {"cache_control": {"type": "ephemeral"}}
    record = {
        "messages": chat("a", "b"),
        "tools": [{"type": "custom", "name": "f", "description": "d", "input_schema": {"type": "object"}, **cache}],
    }
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert normal_form(record, reading("anthropic")).record["tools"] == [{"type": "function", "function": function}]


def test_a_caption_that_stands_in_a_turn_is_named_by_fields_and_asked_for_by_a_transform() -> None:
    record = {"conversations": said("<image>\nDescribe it.", "a dog"), "images": ["a.jpg"]}
    fields = {"conversations": "$.conversations[1].value"}
    assert turns("veomni", record, fields=fields) == [(U, [("image",)]), (A, "a dog")]
    caption = read_record(record, reading("veomni", fields=fields))
    assert isinstance(caption, Record)
    asked = with_question(caption, "What is this?")
    assert [(m.text, len(m.images)) for m in asked.messages] == [("What is this?", 1), ("a dog", 0)]


def test_what_a_map_of_fields_leaves_beside_a_path_is_checked_and_noted() -> None:
    fields = {"messages": "$.data.turns"}
    raw = {"data": {"turns": chat("a", "b"), "n": 1, "empty": None}}
    assert read_record(raw, reading("openai", fields=fields)).unused == ("column data.n",)
    raw["data"]["image"] = "a.png"
    assert rejected("openai", raw, fields=fields) == ("unread_media", "data.image")


def test_what_a_map_of_fields_leaves_of_lists_is_checked_too() -> None:
    fields = {"messages": "$.rows[0].turns", "images": ["$.pics[0]"]}
    turn = [{"type": "image"}, {"type": "text", "text": "a"}]
    raw = {"rows": [{"turns": chat(turn, "b"), "n": 1}, {"m": 2}], "pics": ["a.png"]}
    record = read_record(raw, reading("openai", fields=fields))
    assert record.unused == ("column rows[0].n", "column rows[1]")
    more = {**raw, "images": ["b.png", "c.png"]}
    assert rejected("openai", more, fields=fields) == ("unread_media", "$.images")
