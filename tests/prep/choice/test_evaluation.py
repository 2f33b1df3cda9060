"""Records for evaluation: by what they say, or by a column."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmms.configs.settings.sources import DEFAULT_READING, Choice
from lmms.prep.choice.evaluation import content_hash, is_for_evaluation
from lmms.prep.records.read import read_record
from lmms.prep.reject import Reject


def chat(question: str, answer: str = "Yes.", **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def read(raw: dict[str, Any], **settings: Any) -> Any:
    return read_record(raw, replace(DEFAULT_READING, **settings))


def held_out(choice: Choice, raw: dict[str, Any]) -> bool:
    return is_for_evaluation(choice, raw, read(raw))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_about_the_share_is_held_out_and_a_larger_share_holds_out_more(share: float) -> None:
    rows = 4000
    small = {i for i in range(rows) if held_out(Choice(eval_share=share), chat(f"Is it {i}?"))}
    large = {i for i in range(rows) if held_out(Choice(eval_share=share * 1.5), chat(f"Is it {i}?"))}
    assert abs(len(small) - rows * share) <= 5 * (rows * share * (1 - share)) ** 0.5
    assert small < large


def test_without_a_share_nothing_is_held_out() -> None:
    assert not any(held_out(Choice(), chat(f"Is it {i}?")) for i in range(100))


def test_equal_records_stay_together_in_spite_of_form_weight_id_and_system_prompt() -> None:
    first = content_hash(read(chat("Is it?")))
    assert content_hash(read(chat("Is it?", id=7, weight=0.5))) == first
    assert content_hash(read(chat("Is it?"), system="Be brief.", weight=2.0)) == first
    theirs = {"conversations": [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "Yes."}]}
    assert content_hash(read(theirs, form="sharegpt")) == first
    parts = chat("")
    parts["messages"][0]["content"] = [{"type": "text", "text": "Is "}, {"type": "text", "text": "it?"}]
    assert content_hash(read(parts)) == first


def picture(name: str) -> dict[str, Any]:
    raw = chat("")
    raw["messages"][0]["content"] = [{"type": "image", "image": name}, {"type": "text", "text": "Is it?"}]
    return raw


def test_records_that_say_other_things_differ() -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    called = {"messages": [{"role": "user", "content": "Is it?"}, {"role": "assistant", "tool_calls": [call]}]}
    raws = [chat("Is it?"), chat("Is it", "?Yes."), chat("Is it?", "No."), picture("a.jpg"), picture("b.jpg"), called]
    texts = [read({"text": "Is it?Yes."}, form="text"), read({"text": "Is it?"}, form="text")]
    assert len({content_hash(record) for record in [*map(read, raws), *texts]}) == 8


GROUPS = st.lists(st.integers(0, 30), min_size=1, max_size=60)


@given(GROUPS)
def test_no_group_is_in_both_parts(groups: list[int]) -> None:
    choice = Choice(eval_share=0.5, eval_by="doc")
    sides: dict[int, set[bool]] = {}
    for i, group in enumerate(groups):
        sides.setdefault(group, set()).add(held_out(choice, chat(f"Is it {i}?", doc=group)))
    assert all(len(side) == 1 for side in sides.values())


def test_a_group_is_the_same_as_text_as_a_number_and_at_a_path() -> None:
    by_column, by_path = Choice(eval_share=0.5, eval_by="doc"), Choice(eval_share=0.5, eval_by="$.meta.doc")
    sides = [held_out(by_column, chat("Is it?", doc=i)) for i in range(50)]
    assert {True, False} == set(sides)
    assert [held_out(by_column, chat("Is it?", doc=str(i))) for i in range(50)] == sides
    assert [held_out(by_path, chat("Is it?", meta={"doc": i})) for i in range(50)] == sides


@pytest.mark.parametrize("more", [{}, {"doc": None}, {"doc": ["a"]}])
def test_a_record_without_its_group_is_rejected(more: dict[str, Any]) -> None:
    with pytest.raises(Reject) as caught:
        held_out(Choice(eval_share=0.5, eval_by="doc"), chat("Is it?", **more))
    assert (caught.value.reason, caught.value.place) == ("missing_group", "doc")
