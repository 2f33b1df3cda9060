"""The form of a source: found from what only its records have."""

import json
from typing import Any

import pytest

from lmms.configs.settings.sources import FormName
from lmms.prep.records.forms import FORMS, columns_read, find_form, form_columns
from tests.kit.forms.read import reading
from tests.kit.forms.table import EXAMPLES
from tests.kit.forms.turns import chat, said


@pytest.mark.parametrize("form", [form for form in EXAMPLES if form != "trl"])
def test_the_form_of_a_source_is_found_from_its_first_records(form: FormName) -> None:
    records = [record for record, _ in EXAMPLES[form]]
    assert find_form(records) == form


@pytest.mark.parametrize(
    ("records", "form"),
    [
        ([{"messages": chat("a", "b")}], "openai"),
        ([{"messages": chat("<image> is a tag", "b")}], "openai"),
        ([{"messages": chat("a", "b"), "instruction": "i", "output": "o"}], "openai"),
        ([{"messages": chat("a", "b"), "conversations": said("a", "b")}], "openai"),
        ([{"messages": json.dumps(chat("a", "b"))}], "openai"),
        ([{"messages": None}, {"messages": 3}], "openai"),
        ([{"messages": chat("a", "b")}, {"text": "t"}, {"text": "t"}], "openai"),
        ([{"messages": chat("a", "b")}] * 9 + [{"conversations": said("a", "b")}], "openai"),
        ([{"messages": chat("a", "b")}] * 9 + [{"messages": chat("<image>", "b"), "images": ["a"]}], "swift"),
        ([{"conversations": said("a", "b")}] * 9 + [{"image": "a", "conversations": said("<image>", "b")}], "llava"),
        ([{"messages": chat([{"type": "image_url", "image_url": "a.jpg"}], "b"), "image": "a.jpg"}], "openai"),
        ([{"messages": chat([{"type": "image_url", "image_url": "x"}], "b"), "image": b"x"}], "lmms_engine"),
        ([{"messages": chat("a", "b"), "tools": [{"name": "f", "input_schema": {"type": "object"}}]}], "anthropic"),
        ([{"messages": chat("a", "b"), "tools": [{"name": "f", "parameters": {"type": "object"}}]}], "openai"),
        (
            [{"messages": chat([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}], "b")}],
            "anthropic",
        ),
        ([{"messages": chat([{"type": "text", "text": "a", "cache_control": None}], "b")}], "openai"),
        ([{"conversations": chat([{"type": "text", "value": "a"}], [{"type": "text", "value": "b"}])}], "veomni"),
        ([{"conversations": "a dog", "images": ["a.jpg"]}], "veomni"),
        ([{"conversations": "a dog"}], None),
        ([{"prompt": "a", "completion": "b"}], "trl"),
        ([{"prompt": chat("a"), "completion": chat("b")}], "trl"),
        ([{"chosen": "a", "rejected": "b", "prompt": "c"}], "trl"),
        ([{"prompt": "a", "response": "b"}], "swift"),
        ([{"text": "t", "id": 3}], "text"),
        ([{"instruction": "i", "chosen": "a", "rejected": "b"}], "alpaca"),
        ([{"image": "a.jpg", "width": 3}], None),
        ([{"a": {"b": []}}], None),
    ],
)
def test_the_form_is_the_one_whose_columns_the_first_records_have(records: list[Any], form: str | None) -> None:
    assert find_form(records) == form


@pytest.mark.parametrize(
    ("record", "form"),
    [
        ({"text": "abc", "messages": None}, "text"),
        ({"prompt": "a", "response": "b", "messages": None}, "swift"),
        ({"messages": chat("a", "b"), "conversations": None, "texts": None, "instruction": None}, "openai"),
        ({"instruction": "i", "output": "o", "messages": None, "conversations": None}, "alpaca"),
        ({"prompt": "a", "completion": "b", "output": None, "messages": None}, "trl"),
        ({"texts": ["a"], "messages": None, "text": None}, "interleaved"),
        ({"conversations": said("a", "b"), "image": None}, "llava"),
    ],
)
def test_a_column_that_is_null_does_not_decide_the_form(record: dict[str, Any], form: str) -> None:
    assert find_form([record]) == form


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_reads_the_columns_that_all_records_may_have(form: FormName) -> None:
    columns = {"tools", "functions", "weight", "chat_template_kwargs", "system"}
    assert columns | {"images", "videos", "screenshot"} <= set(columns_read(reading(form)))
    assert columns <= set(form_columns(form))
