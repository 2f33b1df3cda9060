"""Records that do not fit their form: a named reason, at the place in the record as it was."""

from typing import Any

import pytest

from lmms.configs.settings.sources import FormName
from lmms.prep.records.forms import FORMS
from lmms.prep.records.read import read_record
from lmms.prep.reject import Reject
from tests.kit.forms.read import reading, rejected
from tests.kit.forms.turns import CALL, chat, said

BOX = {"ref": ["a dog"], "bbox": [[1, 2, 3, 4]]}


@pytest.mark.parametrize(
    ("form", "record", "reason", "place"),
    [
        ("sharegpt", {"messages": chat("a", "b")[:0]}, "empty_messages", "messages"),
        ("sharegpt", {"a": 1}, "missing_messages", ""),
        ("sharegpt", {"conversations": {}}, "messages_not_list", "conversations"),
        ("sharegpt", {"conversations": "not json"}, "invalid_json", "conversations"),
        ("sharegpt", {"conversations": ["a"]}, "message_not_object", "conversations[0]"),
        ("sharegpt", {"conversations": [{"value": "a"}]}, "missing_role", "conversations[0]"),
        ("sharegpt", {"conversations": [{"from": "human"}]}, "missing_content", "conversations[0].value"),
        ("sharegpt", {"conversations": [*said("a"), {"from": "poet", "value": "b"}]}, "unknown_role",
         "conversations[1].value"),
        ("sharegpt", {"conversations": [*said("a"), {"from": "function_call", "value": "call"}]}, "invalid_json",
         "conversations[1].value"),
        ("sharegpt", {"conversations": said("a")}, "no_assistant", "messages"),
        ("sharegpt", {"conversations": said("a"), "chosen": {"from": "gpt", "value": "b"}, "rejected": {}},
         "preference_data", "chosen"),
        ("llava", {"conversations": said("<image>a", "b")}, "count_mismatch", "images"),
        ("llava", {"conversations": said("a", "b"), "image": "a.jpg"}, "count_mismatch", "images"),
        ("llava", {"conversations": said("<image><image>", "b"), "image": "a.jpg"}, "count_mismatch", "images"),
        ("llava", {"conversations": said("a", "<image>"), "image": "a.jpg"}, "image_in_assistant",
         "conversations[1].value"),
        ("llava", {"conversations": said("<image>", "b"), "image": "a", "images": ["b"]}, "bad_part", "image"),
        ("llava", {"conversations": said("<audio>", "b"), "audio": ["a", "b"]}, "count_mismatch", "audios"),
        ("llava", {"conversations": said("<video>", "b"), "audio": "a.wav"}, "count_mismatch", "videos"),
        ("swift", {"messages": chat("<image>a", "b"), "images": ["a", "b"]}, "count_mismatch", "images"),
        ("swift", {"messages": chat("<image>Find", "<bbox>"), "images": ["a"], "objects": BOX}, "count_mismatch",
         "objects"),
        ("swift", {"messages": chat("a", "b"), "rejected_response": "c"}, "preference_data", "rejected_response"),
        ("swift", {"messages": [*chat("a"), {"role": "assistant", "content": "x", "loss": False},
                                {"role": "assistant", "content": "b"}]}, "conflicting_weights", "messages[2].content"),
        ("swift", {"question": "a", "problem": "b", "answer": "c"}, "missing_messages", "problem"),
        ("swift", {"response": "b"}, "missing_messages", ""),
        ("swift", {"query": "b"}, "no_assistant", "messages"),
        ("alpaca", {"instruction": "a"}, "missing_messages", ""),
        ("alpaca", {"instruction": "a", "output": 3}, "bad_content_type", "output"),
        ("alpaca", {"instruction": "a", "output": "b", "history": [["a"]]}, "message_not_object", "history[0]"),
        ("alpaca", {"instruction": "a", "output": "b", "image": "a.jpg"}, "count_mismatch", "images"),
        ("trl", {"prompt": chat("a")}, "no_assistant", "prompt"),
        ("trl", {"prompt": "a"}, "no_assistant", "prompt"),
        ("trl", {"prompt": "a", "chosen": "b", "rejected": "c"}, "preference_data", "chosen"),
        ("trl", {"prompt": "a", "completion": "b", "label": False}, "preference_data", "label"),
        ("trl", {"prompt": "a", "completion": chat(None, "b")}, "invalid_json", "prompt"),
        ("trl", {"completion": "b"}, "missing_messages", ""),
        ("veomni", {"conversations": [["user", "text"]]}, "part_not_object", "conversations[0][1]"),
        ("veomni", {"conversations": [["user", ["image", None]], ["assistant", ["text", "b"]]]}, "count_mismatch",
         "images"),
        ("lmms_engine", {"messages": chat([{"type": "text", "text": "a"}], "b"), "image": [b"x"]}, "count_mismatch",
         "images"),
        ("anthropic", {"messages": chat([{"type": "image", "source": {"type": "file"}}], "b")}, "bad_part",
         "messages[0].content[0]"),
        ("text", {"messages": chat("a", "b")}, "missing_messages", ""),
        # What the pages of the systems have beside answers to learn, and parts for which no model here has a place.
        ("swift", {"messages": chat("<image>a", "b"), "images": ["a"], "rejected_images": ["b"]}, "preference_data",
         "rejected_images"),
        ("swift", {"query": "<img>a.jpg</img>a<image>", "response": "b"}, "count_mismatch", "images"),
        ("swift", {"messages": chat("a"), "label": 0.8}, "no_assistant", "messages"),
        ("trl", {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}, "no_assistant", "prompt"),
        ("trl", {"messages": [{"role": "developer", "content": "s"}, *chat("a", "b")]}, "unknown_role", "messages[0]"),
        ("anthropic", {"messages": chat("a", [{"type": "redacted_thinking", "data": "x"}])}, "unknown_part_type",
         "messages[1]"),
        ("anthropic", {"messages": chat([{"type": "document", "source": {"type": "url", "url": "a"}}], "b")},
         "unknown_part_type", "messages[0]"),
        ("openai", {"messages": chat([{"type": "input_audio", "input_audio": {"url": "x"}}], "b")}, "bad_part",
         "messages[0].content[0]"),
        ("openai", {"messages": chat([{"type": "file", "file": {"file_id": "x"}}], "b")}, "unknown_part_type",
         "messages[0].content[0]"),
        ("veomni", {"source": "tulu", "conversations": "a dog"}, "missing_messages", ""),
        ("veomni", {"conversations": " ", "images": ["a"]}, "missing_messages", ""),
        ("veomni", {"conversations": "[not turns", "images": ["a"]}, "invalid_json", "conversations"),
        ("interleaved", {"texts": ["a", None], "images": ["b", None]}, "count_mismatch", "texts[0]"),
        ("objects", {"image": "a", "objects": [{"label": "dog"}]}, "bad_box", "objects[0]"),
    ],
)  # fmt: skip
def test_a_record_that_does_not_fit_its_form_is_rejected_at_its_place(
    form: FormName, record: dict[str, Any], reason: str, place: str
) -> None:
    assert rejected(form, record) == (reason, place)


THOUGHT = {"type": "thinking", "thinking": "R"}


USE = {"type": "tool_use", "id": "1", "name": "f", "input": {}}


REASON = {"type": "reasoning", "value": "R"}


TOOL_CALL = {"type": "tool_call", "value": CALL}


@pytest.mark.parametrize(("form", "parts"), [("anthropic", [THOUGHT, USE]), ("llamafactory", [REASON, TOOL_CALL])])
def test_a_thought_before_a_call_is_the_reasoning_of_the_turn(form: FormName, parts: list[Any]) -> None:
    answer = read_record({"messages": chat("a", parts)}, reading(form)).messages[1]
    assert (answer.reasoning, answer.text, len(answer.calls)) == ("R", "", 1)


@pytest.mark.parametrize(
    ("form", "parts", "reason"),
    [
        ("anthropic", [{"type": "text", "text": "BEFORE"}, THOUGHT, USE], "bad_reasoning"),
        ("anthropic", [{"type": "thinking", "thinking": None}, {"type": "text", "text": "b"}], "bad_reasoning"),
        ("anthropic", [USE, {"type": "text", "text": "AFTER"}], "bad_part"),
        ("anthropic", [USE, THOUGHT], "bad_part"),
        ("llamafactory", [{"type": "text", "value": "BEFORE"}, REASON, TOOL_CALL], "bad_reasoning"),
        ("llamafactory", [{"type": "reasoning", "value": None}, {"type": "text", "value": "b"}], "bad_reasoning"),
        ("llamafactory", [TOOL_CALL, {"type": "text", "value": "AFTER"}], "bad_part"),
        ("llamafactory", [TOOL_CALL, REASON], "bad_part"),
    ],
)
def test_parts_that_a_template_would_move_are_a_rejection(form: FormName, parts: list[Any], reason: str) -> None:
    assert rejected(form, {"messages": chat("a", parts)})[0] == reason


@pytest.mark.parametrize(
    ("later", "reason"),
    [
        ({"role": "tool_call", "content": CALL, "loss": False}, "conflicting_weights"),
        ({"role": "tool_call", "content": CALL, "reasoning_content": "THINK"}, "bad_reasoning"),
    ],
)
def test_a_later_call_of_a_run_cannot_lose_its_flags_and_its_reasoning(later: dict[str, Any], reason: str) -> None:
    first = {"role": "tool_call", "content": CALL, "loss": True}
    assert rejected("swift", {"messages": [*chat("a"), first, later]}) == (reason, "messages[2].content")


def test_a_later_turn_of_the_assistant_keeps_the_keys_that_the_first_lacks() -> None:
    record = {"messages": [*chat("a", "b"), {"role": "assistant", "content": "c", "screenshot": "a.png"}]}
    assert rejected("swift", record) == ("unread_media", "messages[1].content")


def test_pictures_that_a_form_has_no_place_for_say_which_form_to_name() -> None:
    record = {"conversations": said("<image>a", "b"), "image": "a.png"}
    with pytest.raises(Reject, match="form=llava"):
        read_record(record, reading("sharegpt"))


@pytest.mark.parametrize("form", sorted(FORMS))
def test_answers_to_compare_are_rejected_in_every_form(form: FormName) -> None:
    record = {"messages": chat("a", "b"), "text": "t", "chosen": "x", "rejected": "y"}
    assert rejected(form, record) == ("preference_data", "chosen")


@pytest.mark.parametrize("flags", [{"loss": True}, {"mask": 0}, {"weight": 0.5}])
def test_a_turn_of_trls_prompt_that_asks_to_be_learned_is_a_rejection(flags: dict[str, Any]) -> None:
    asked, answer = chat("a", "x")
    record = {"prompt": [asked, {**answer, **flags}, asked], "completion": [answer]}
    assert rejected("trl", record) == ("conflicting_weights", "prompt[1]")
    with pytest.raises(Reject, match="`prompt`"):
        read_record(record, reading("trl"))


@pytest.mark.parametrize("form", ["alpaca", "swift"])
def test_a_history_that_is_no_list_is_a_rejection(form: FormName) -> None:
    record = {"instruction": "i", "output": "o", "history": 1.5}
    assert rejected(form, record) == ("messages_not_list", "history")


def test_a_fault_behind_a_system_column_has_its_place_in_the_record() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "poem"}]
    assert rejected("openai", {"messages": chat(parts, "b"), "system": "s"}) == (
        "unknown_part_type", "messages[0].content[1]",
    )  # fmt: skip
    assert rejected("openai", {"messages": chat("a", "b"), "system": 3}) == ("bad_content_type", "system")


def test_tags_and_sounds_that_differ_are_counted_in_words() -> None:
    record = {"conversations": said("a", "b"), "audios": ["a.wav"]}
    with pytest.raises(Reject, match="0 tags <audio> in the text, 1 sound beside it"):
        read_record(record, reading("llava"))
