"""Tools, calls, results: ids equal the official template's on real records, and the calls are what is learned."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lmms.configs.contract.model_folder import read_model_folder
from lmms.configs.settings.sources import DEFAULT_READING, Reasoning, Targets
from lmms.prep.records.record import parse_record
from lmms.prep.records.strict_json import parse_line
from lmms.prep.reject import Reject
from lmms.prep.render.render import Rendered, render_record
from lmms.prep.render.renderer import Renderer, load_renderer
from lmms.prep.render.template import compile_template

SETS = ("sgd_tools", "bfcl_tools", "tau_airline", "tau_airline_joined", "swe_agent", "llamafactory_demo")
NAMES = ("qwen2.5-text", "qwen3-text", "qwen3-vl")


def records(path: Path, every: int) -> Iterator[dict[str, Any]]:
    with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
        for line in stream.read().rstrip(b"\n").split(b"\n")[::every]:
            yield parse_line(line)


def as_objects(message: dict[str, Any]) -> dict[str, Any]:
    """The message as transformers wants it: arguments are objects, and content is text."""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    given = [call["arguments"] for call in calls]
    objects = [json.loads(arguments) if isinstance(arguments, str) else arguments for arguments in given]
    functions = [{"function": {**call, "arguments": o}} for call, o in zip(calls, objects, strict=True)]
    return {**message, "content": message.get("content") or "", **({"tool_calls": functions} if functions else {})}


@pytest.mark.campaign
@pytest.mark.parametrize("name", NAMES)
def test_ids_of_real_records_with_tools_are_those_of_the_official_template(
    name: str, shared: Path, model_folders: dict[str, Path]
) -> None:
    from transformers import AutoTokenizer

    every = int(os.environ.get("LMMS_TOOLS_EVERY", "100"))
    folder = read_model_folder(model_folders[name])
    renderer, official = load_renderer(folder), AutoTokenizer.from_pretrained(model_folders[name])
    checked: Counter[str] = Counter()
    for data_set in SETS:
        for raw in records(shared / "data/text" / f"{data_set}.jsonl.zst", every):
            rendered = render_record(renderer, parse_record(raw), [])
            messages, tools = [as_objects(message) for message in raw["messages"]], raw.get("tools") or None
            text = official.apply_chat_template(
                messages, tools=tools, tokenize=False, chat_template=folder.chat_template
            )
            assert rendered.input_ids.tolist() == official(text, add_special_tokens=False)["input_ids"]
            learned = [official.decode(rendered.input_ids[start:end]) for start, end in rendered.targets]
            turns = [turn.split("<|im_end|>")[0] + "<|im_end|>" for turn in text.split("<|im_start|>assistant\n")[1:]]
            # A token may hold the line feed of the header and that of the answer.
            assert [answer.lstrip("\n") for answer in learned] == [turn.lstrip("\n") for turn in turns]
            checked[data_set] += 1
    assert set(checked) == set(SETS)
    assert checked["sgd_tools"] == -(-14_000 // every)


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "How is <|im_end|> it?"}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "<|im_start|>Rome"}'}}
TURNS = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "c2"}]},
    {"role": "tool", "content": "no", "tool_call_id": "c1"},
    {"role": "tool", "content": "<|im_end|> yes", "tool_call_id": "c2"},
    {"role": "assistant", "content": "No rain."},
]


def render(renderer: Renderer, turns: Any, *, tools: Any = None, **reading: Any) -> Rendered:
    record = parse_record({"messages": turns, "tools": tools}, replace(DEFAULT_READING, **reading))
    return render_record(renderer, record, [])


def learned(renderer: Renderer, rendered: Rendered) -> list[str]:
    decode = renderer.encoder.exact.decode
    return [
        decode(rendered.input_ids[start:end].tolist(), skip_special_tokens=False) for start, end in rendered.targets
    ]


@pytest.fixture(scope="module")
def renderers(model_folders: dict[str, Path]) -> dict[str, Renderer]:
    return {name: load_renderer(read_model_folder(model_folders[name])) for name in (*NAMES, "qwen2.5-vl")}


@pytest.mark.parametrize("name", NAMES)
def test_calls_are_learned_and_results_are_not(name: str, renderers: dict[str, Renderer]) -> None:
    renderer = renderers[name]
    rendered = render(renderer, TURNS, tools=TOOLS)
    calls, answer = learned(renderer, rendered)
    assert calls.count('{"name": "weather", "arguments": {"place": "<|im_start|>Rome"}}') == 2
    assert answer.endswith("No rain.<|im_end|>")
    assert "tool_response" not in calls + answer


@pytest.mark.parametrize("name", NAMES)
def test_special_token_text_in_tools_calls_and_results_stays_text(name: str, renderers: dict[str, Renderer]) -> None:
    renderer = renderers[name]
    plain = json.loads(json.dumps([TURNS, TOOLS]).replace("<|im_end|> ", "").replace("<|im_start|>", ""))
    controls = set(renderer.control_ids.values())
    counts = [
        sum(token in controls for token in render(renderer, turns, tools=tools).input_ids.tolist())
        for turns, tools in ((TURNS, TOOLS), plain)
    ]
    assert counts[0] == counts[1]


def test_a_template_without_a_place_for_tools_is_a_rejection(renderers: dict[str, Renderer]) -> None:
    renderer = renderers["qwen2.5-vl"]
    for turns, tools, place in ((TURNS[:1] + TURNS[-1:], TOOLS, "tools"), (TURNS, None, "messages[1]")):
        with pytest.raises(Reject, match="chat_template=FILE") as caught:
            render(renderer, turns, tools=tools)
        assert (caught.value.reason, caught.value.place) == ("tools_unsupported", place)


REASONED = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2", "reasoning_content": "one and one"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n\n4"},
]


@pytest.mark.parametrize(
    ("targets", "reasoning", "expected"),
    [
        ("last", "template", ["<think>\ntwo and two\n</think>\n\n4<|im_end|>"]),
        ("assistant", "optional", ["2<|im_end|>", "<think>\ntwo and two\n</think>\n\n4<|im_end|>"]),
        ("assistant", "stripped", ["2<|im_end|>", "<think>\n\n</think>\n\n4<|im_end|>"]),
        ("last", "masked", ["4<|im_end|>"]),
        ("all", "optional", ["1+1?<|im_end|>", "2<|im_end|>", "2+2?<|im_end|>",
                             "<think>\ntwo and two\n</think>\n\n4<|im_end|>"]),
    ],
)  # fmt: skip
def test_targets_and_reasoning_decide_what_is_learned(
    targets: Targets, reasoning: Reasoning, expected: list[str], renderers: dict[str, Renderer]
) -> None:
    renderer = renderers["qwen3-text"]
    rendered = render(renderer, REASONED, targets=targets, reasoning=reasoning)
    assert learned(renderer, rendered) == expected
    assert rendered.dropped_text == (reasoning != "stripped")


LATE = {"role": "assistant", "content": "Hm. <think>so</think> 2"}


@pytest.mark.parametrize(
    ("name", "turns", "reason", "place"),
    [
        ("qwen3-text", REASONED, "reasoning_dropped", "messages[1]"),
        ("qwen2.5-text", REASONED[:2], "reasoning_dropped", "messages[1]"),
        ("qwen3-text", [REASONED[0], LATE], "reasoning_dropped", "messages[1]"),
    ],
)  # fmt: skip
def test_reasoning_to_learn_from_that_a_template_leaves_out_is_a_rejection(
    name: str, turns: Any, reason: str, place: str, renderers: dict[str, Renderer]
) -> None:
    with pytest.raises(Reject) as caught:
        render(renderers[name], turns)
    assert (caught.value.reason, caught.value.place) == (reason, place)


def test_reasoning_of_a_turn_that_is_context_may_be_left_out(renderers: dict[str, Renderer]) -> None:
    context = [REASONED[0], {**REASONED[1], "weight": 0}, *REASONED[2:]]
    assert render(renderers["qwen3-text"], context).dropped_text


def test_masked_think_blocks_are_left_out_of_the_targets(
    renderers: dict[str, Renderer],
) -> None:
    turns = [REASONED[0], {"role": "assistant", "content": "a<think>b</think>\n\nc<think></think>\nd"}]
    renderer = renderers["qwen2.5-text"]
    assert learned(renderer, render(renderer, turns, reasoning="masked")) == ["a", "c", "d<|im_end|>"]


def test_an_option_reaches_the_template_and_an_unknown_option_is_a_rejection(renderers: dict[str, Renderer]) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ tone }}{{ m.content }}<|im_end|>\n{% endfor %}"
    renderer = replace(renderers["qwen3-text"], template=compile_template(template))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert learned(renderer, render(renderer, turns, template_options={"tone": "kind "})) == ["kind b<|im_end|>"]
    raw = {"messages": turns, "chat_template_kwargs": '{"tone": "rude "}'}
    record = parse_record(raw, replace(DEFAULT_READING, template_options={"tone": "kind "}))
    assert learned(renderer, render_record(renderer, record, [])) == ["rude b<|im_end|>"]
    with pytest.raises(Reject, match="reads tone") as caught:
        render(renderer, turns, template_options={"enable_thinking": False})
    assert caught.value.reason == "bad_template_option"


def test_special_token_text_in_an_option_stays_text(renderers: dict[str, Renderer]) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ tone }}{{ m.content }}<|im_end|>\n{% endfor %}"
    renderer = replace(renderers["qwen3-text"], template=compile_template(template))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rendered = render(renderer, turns, template_options={"tone": "<|im_end|>"})
    assert rendered.input_ids.tolist().count(renderer.control_ids["<|im_end|>"]) == 2
    assert learned(renderer, rendered) == ["<|im_end|>b<|im_end|>"]


def test_a_special_token_of_any_shape_stays_text_in_content(renderers: dict[str, Renderer]) -> None:
    """As a model has them whose special tokens do not all begin with the same letters."""
    found = renderers["qwen2.5-text"]
    tokens = {**found.control_ids, "<SEP>": 151_646}
    pattern = re.compile("(" + "|".join(map(re.escape, tokens)) + ")")
    renderer = replace(found, control_ids=tokens, control=pattern, control_prefix=os.path.commonprefix(list(tokens)))
    turns = [{"role": "user", "content": "a <SEP> b"}, {"role": "assistant", "content": "c"}]
    assert 151_646 not in render(renderer, turns).input_ids.tolist()


@pytest.mark.parametrize(("place", "reason"), [("content", "lone_surrogate"), ("arguments", "bad_tool_arguments")])
def test_half_of_a_surrogate_pair_is_a_rejection(place: str, reason: str, renderers: dict[str, Renderer]) -> None:
    half = "\ud83d"
    call = {"function": {"name": "f", "arguments": '{"x": "\\ud83d"}'}}
    answer = {"content": half} if place == "content" else {"content": None, "tool_calls": [call]}
    with pytest.raises(Reject) as caught:
        render(renderers["qwen3-text"], [{"role": "user", "content": "a"}, {"role": "assistant", **answer}])
    assert caught.value.reason == reason
