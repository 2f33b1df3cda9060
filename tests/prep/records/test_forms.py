"""Forms: records as other systems write them, in the normal form that those systems read out of them."""

import json
from collections.abc import Sequence
from typing import Any, get_args

import pytest

from lmms.configs.settings.sources import DEFAULT_READING, FormName, Reading
from lmms.prep.media.resize import Ask
from lmms.prep.records.forms import FORMS, columns_read, find_form, form_columns, normal_form
from lmms.prep.records.read import read_record
from lmms.prep.reject import REASONS, Reject

Turn = tuple[str, Any]
"""Role and content; a picture is ("image",) among the parts."""


def reading(form: FormName, **settings: Any) -> Reading:
    values = {name: getattr(DEFAULT_READING, name) for name in Reading.__dataclass_fields__}
    return Reading(**{**values, "form": form, **settings})


def turns(form: FormName, record: dict[str, Any], **settings: Any) -> list[Turn]:
    """(role, content) of each message of the normal form: a text, or texts and names of kinds."""
    messages = normal_form(record, reading(form, **settings)).record["messages"]
    return [(message["role"], _content(message)) for message in messages]


def _content(message: dict[str, Any]) -> Any:
    if message.get("tool_calls"):
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]
        return (message["content"], *calls)
    if not isinstance(message["content"], list):
        return message["content"]
    return [part["text"] if part["type"] == "text" else (part["type"],) for part in message["content"]]


def rejected(form: FormName, record: dict[str, Any], **settings: Any) -> tuple[str, str]:
    with pytest.raises(Reject) as caught:
        read_record(record, reading(form, **settings))
    assert caught.value.reason in REASONS
    assert caught.value.message
    return caught.value.reason, caught.value.place


def said(*texts: str) -> list[dict[str, str]]:
    """ShareGPT turns, human first."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def chat(*texts: Any) -> list[dict[str, Any]]:
    """OpenAI turns, user first."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


U, A, S, T = "user", "assistant", "system", "tool"
CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'
IMAGE = ("image",)
BOX = {"ref": ["a dog"], "bbox": [[1, 2, 3, 4]]}

EXAMPLES: dict[FormName, Sequence[tuple[dict[str, Any], list[Turn]]]] = {
    # LLaMA-Factory: data/README.md, glaive_toolcall_en_demo.json; ms-swift: docs, Custom-dataset.md
    "sharegpt": [
        ({"conversations": said("a", "b")}, [(U, "a"), (A, "b")]),
        ({"conversations": said("a", "b", "c", "d")}, [(U, "a"), (A, "b"), (U, "c"), (A, "d")]),
        ({"conversations": said("a", "b"), "system": "s"}, [(S, "s"), (U, "a"), (A, "b")]),
        ({"conversations": said("a", "b"), "system": ""}, [(U, "a"), (A, "b")]),
        ({"conversations": said("a", "b"), "system": None, "tools": ""}, [(U, "a"), (A, "b")]),
        ({"conversations": [{"from": "system", "value": "s"}, *said("a", "b")]}, [(S, "s"), (U, "a"), (A, "b")]),
        # A system turn at the start counts more than the column.
        ({"conversations": [{"from": "system", "value": "s"}, *said("a", "b")], "system": "t"},
         [(S, "s"), (U, "a"), (A, "b")]),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": CALL},
                            {"from": "observation", "value": "sun"}, {"from": "gpt", "value": "b"}]},
         [(U, "a"), (A, (None, ("weather", {"city": "Rome"}))), (T, "sun"), (A, "b")]),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": f"[{CALL}, {CALL}]"}]},
         [(U, "a"), (A, (None, *[("weather", {"city": "Rome"})] * 2))]),
        ({"conversations": [{"from": "human", "value": "a"},
                            {"from": "function_call", "value": f"<think>\nhm\n</think>\n\n{CALL}"}]},
         [(U, "a"), (A, ("<think>\nhm\n</think>", ("weather", {"city": "Rome"})))]),
        ({"conversation": said("a", "b")}, [(U, "a"), (A, "b")]),
        ({"conversation": [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}], "system": "s"},
         [(S, "s"), (U, "a"), (A, "b"), (U, "c"), (A, "d")]),
        ({"messages": said("a", "b")}, [(U, "a"), (A, "b")]),
        ({"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]},
         [(U, "a"), (A, "b")]),
        ({"conversations": [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]}, [(U, "a"), (A, "b")]),
        ({"conversations": json.dumps(said("a", "b"))}, [(U, "a"), (A, "b")]),
        ({"conversations": said("write <image> in HTML", "b")}, [(U, "write <image> in HTML"), (A, "b")]),
        ({"conversations": said("a", "<think>\nx\n</think>\nb")}, [(U, "a"), (A, "<think>\nx\n</think>\nb")]),
        ({"conversations": [{"from": "human", "value": "a", "role": None, "content": None}, *said("", "b")[1:]]},
         [(U, "a"), (A, "b")]),
        ({"conversations": said("", "")}, [(U, ""), (A, "")]),
    ],
    # LLaVA: docs/Finetune_Custom_Data.md; LLaMA-Factory: mllm_demo.json under the keys of ShareGPT
    "llava": [
        ({"id": "1", "image": "a.jpg", "conversations": said("<image>\nWhat?", "b")},
         [(U, [IMAGE, "\nWhat?"]), (A, "b")]),
        ({"image": "a.jpg", "conversations": said("What?\n<image>", "b")}, [(U, ["What?\n", IMAGE]), (A, "b")]),
        ({"image": ["a.jpg", "b.jpg"], "conversations": said("<image>\n<image>\nBoth?", "b")},
         [(U, [IMAGE, "\n", IMAGE, "\nBoth?"]), (A, "b")]),
        ({"image": ["a.jpg", "b.jpg"], "conversations": said("<image>a", "b", "c<image>", "d")},
         [(U, [IMAGE, "a"]), (A, "b"), (U, ["c", IMAGE]), (A, "d")]),
        ({"conversations": said("a", "b")}, [(U, "a"), (A, "b")]),
        ({"image": None, "conversations": said("a", "b")}, [(U, "a"), (A, "b")]),
        ({"image": "", "conversations": said("a", "b")}, [(U, "a"), (A, "b")]),
        ({"images": ["a.jpg"], "conversations": said("<image>a", "b")}, [(U, [IMAGE, "a"]), (A, "b")]),
        ({"images": [{"bytes": b"x", "path": None}], "conversations": said("<image>a", "b")},
         [(U, [IMAGE, "a"]), (A, "b")]),
        ({"image": {"bytes": b"x", "path": None}, "conversations": said("<image>", "b")}, [(U, [IMAGE]), (A, "b")]),
        ({"image": b"x", "conversations": said("<image>a", "b")}, [(U, [IMAGE, "a"]), (A, "b")]),
        ({"images": "a.jpg", "conversations": said("<image>a", "b")}, [(U, [IMAGE, "a"]), (A, "b")]),
        ({"images": '["a.jpg", "b.jpg"]', "conversations": said("<image><image>a", "b")},
         [(U, [IMAGE, IMAGE, "a"]), (A, "b")]),
        ({"image": "a.jpg", "images": ["a.jpg"], "conversations": said("<image>a", "b")},
         [(U, [IMAGE, "a"]), (A, "b")]),
        ({"image": "a.jpg", "conversations": said("<image>a", "b"), "system": "s"},
         [(S, "s"), (U, [IMAGE, "a"]), (A, "b")]),
        ({"images": ["a.jpg", None], "conversations": said("<image>a", "b")}, [(U, [IMAGE, "a"]), (A, "b")]),
        ({"image": {"bytes": None, "path": None}, "conversations": said("a", "b")}, [(U, "a"), (A, "b")]),
        ({"video": "a.mp4", "conversations": said("<video>\na", "b")}, [(U, [("video",), "\na"]), (A, "b")]),
        ({"video": "a.mp4", "conversations": said("<image>\na", "b")}, [(U, [IMAGE, "\na"]), (A, "b")]),
        ({"image": "a.jpg", "conversations": json.dumps(said("<image>a", "b"))}, [(U, [IMAGE, "a"]), (A, "b")]),
    ],
    # ms-swift: docs, Custom-dataset.md; LLaMA-Factory: mllm_demo.json
    "swift": [
        ({"messages": chat("a", "b")}, [(U, "a"), (A, "b")]),
        ({"messages": [{"role": "system", "content": "s"}, *chat("a", "b")]}, [(S, "s"), (U, "a"), (A, "b")]),
        ({"messages": chat("<image>What?", "b"), "images": ["a.jpg"]}, [(U, [IMAGE, "What?"]), (A, "b")]),
        ({"messages": chat("<image>a", "b", "c<image>", "d"), "images": ["a.jpg", "a.jpg"]},
         [(U, [IMAGE, "a"]), (A, "b"), (U, ["c", IMAGE]), (A, "d")]),
        ({"messages": chat("a", "b"), "images": ["a.jpg", "b.jpg"]}, [(U, [IMAGE, IMAGE, "a"]), (A, "b")]),
        ({"messages": [{"role": "system", "content": "s"}, *chat("a", "b")], "images": ["a.jpg"]},
         [(S, "s"), (U, [IMAGE, "a"]), (A, "b")]),
        ({"query": "a", "response": "b"}, [(U, "a"), (A, "b")]),
        ({"query": "a", "response": "b", "system": "s", "history": [["x", "y"]]},
         [(S, "s"), (U, "x"), (A, "y"), (U, "a"), (A, "b")]),
        ({"query": "<image>a", "response": "b", "image": "a.jpg"}, [(U, [IMAGE, "a"]), (A, "b")]),
        ({"query": "a", "response": "b", "images": ["a.jpg"]}, [(U, [IMAGE, "a"]), (A, "b")]),
        ({"question": "a", "answer": "b"}, [(U, "a"), (A, "b")]),
        ({"problem": "a", "solution": "b"}, [(U, "a"), (A, "b")]),
        ({"query": "a", "response": ["b", "c"]}, [(U, "a"), (A, "b")]),
        ({"system_prompt": "s", "prompt": "a", "response": "b"}, [(S, "s"), (U, "a"), (A, "b")]),
        ({"instruction": "i", "input": "j", "output": "b"}, [(U, "i\nj"), (A, "b")]),
        ({"conversation": [{"human": "a", "assistant": "b"}], "system": "s"}, [(S, "s"), (U, "a"), (A, "b")]),
        ({"messages": [*chat("a"), *[{"role": "tool_call", "content": CALL}] * 2,
                       *[{"role": "tool_response", "content": "sun"}] * 2, {"role": "assistant", "content": "b"}]},
         [(U, "a"), (A, (None, *[("weather", {"city": "Rome"})] * 2)), (T, "sun"), (T, "sun"), (A, "b")]),
        ({"messages": [*chat("<image>a", "<think>\nx\n</think>\n"), {"role": "tool_call", "content": CALL},
                       {"role": "tool", "content": '{"screen": "<image>"}'}, {"role": "assistant", "content": "b"}],
          "images": ["a.png", "b.png"]},
         [(U, [IMAGE, "a"]), (A, ("<think>\nx\n</think>\n", ("weather", {"city": "Rome"}))),
          (T, ['{"screen": "', IMAGE, '"}']), (A, "b")]),
        ({"messages": [*chat("a", "<think>\nx\n</think>\n"), {"role": "assistant", "content": "b"}]},
         [(U, "a"), (A, "<think>\nx\n</think>\nb")]),
        ({"messages": chat([{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "a"}], "b")},
         [(U, [IMAGE, "a"]), (A, "b")]),
        ({"messages": chat("a", "b"), "objects": {"ref": [], "bbox": []}}, [(U, "a"), (A, "b")]),
    ],
    # LLaMA-Factory: data/README.md, alpaca_en_demo.json
    "alpaca": [
        ({"instruction": "i", "input": "", "output": "b"}, [(U, "i"), (A, "b")]),
        ({"instruction": "i", "input": "j", "output": "b"}, [(U, "i\nj"), (A, "b")]),
        ({"instruction": "i", "output": "b"}, [(U, "i"), (A, "b")]),
        ({"instruction": "", "input": "j", "output": "b"}, [(U, "j"), (A, "b")]),
        ({"instruction": "i", "input": None, "output": "b", "system": None, "history": None}, [(U, "i"), (A, "b")]),
        ({"instruction": "i", "input": "", "output": "b", "system": "s"}, [(S, "s"), (U, "i"), (A, "b")]),
        ({"instruction": "i", "input": "", "output": "b", "history": [["x", "y"], ["v", "w"]]},
         [(U, "x"), (A, "y"), (U, "v"), (A, "w"), (U, "i"), (A, "b")]),
        ({"instruction": "i", "input": "", "output": "b", "history": []}, [(U, "i"), (A, "b")]),
        ({"instruction": "i", "input": "", "output": "b", "history": '[["x", "y"]]'},
         [(U, "x"), (A, "y"), (U, "i"), (A, "b")]),
        ({"instruction": "i", "input": "", "output": "b", "history": [["x", "y"]], "system": "s"},
         [(S, "s"), (U, "x"), (A, "y"), (U, "i"), (A, "b")]),
        ({"instruction": "i", "input": "", "output": "b", "text": "Below is an instruction"}, [(U, "i"), (A, "b")]),
        ({"instruction": "i", "input": "", "output": ""}, [(U, "i"), (A, "")]),
        ({"instruction": " i ", "input": " j", "output": " b"}, [(U, " i \n j"), (A, " b")]),
        ({"instruction": "i", "input": "", "output": "<think>\nx\n</think>\n\nb"},
         [(U, "i"), (A, "<think>\nx\n</think>\n\nb")]),
        ({"instruction": "<image>i", "input": "", "output": "b", "images": ["a.jpg"]}, [(U, [IMAGE, "i"]), (A, "b")]),
        ({"instruction": "i", "input": "<image>", "output": "b", "image": "a.jpg"}, [(U, ["i\n", IMAGE]), (A, "b")]),
        ({"instruction": "<image>x", "input": "<image>", "output": "b", "images": ["a.jpg", "b.jpg"]},
         [(U, [IMAGE, "x\n", IMAGE]), (A, "b")]),
        ({"instruction": "what is <image> in HTML?", "input": "", "output": "b"},
         [(U, "what is <image> in HTML?"), (A, "b")]),
        ({"instruction": "你好", "input": "世界", "output": "b"}, [(U, "你好\n世界"), (A, "b")]),
        ({"instruction": "i", "input": "", "output": "b", "images": []}, [(U, "i"), (A, "b")]),
    ],
    # TRL: docs, dataset_formats.md
    "trl": [
        ({"prompt": chat("a"), "completion": chat(None, "b")[1:]}, [(U, "a"), (A, "b")]),
        ({"prompt": chat("a", "x", "c"), "completion": chat(None, "b")[1:]}, [(U, "a"), (A, "x"), (U, "c"), (A, "b")]),
        ({"prompt": [{"role": "system", "content": "s"}, *chat("a")], "completion": chat(None, "b")[1:]},
         [(S, "s"), (U, "a"), (A, "b")]),
        ({"prompt": chat("a"), "completion": [*chat(None, "b")[1:], *chat("c", "d")]},
         [(U, "a"), (A, "b"), (U, "c"), (A, "d")]),
        ({"prompt": chat("a"), "completion": chat(None, "b")[1:], "images": ["a.jpg"]}, [(U, [IMAGE, "a"]), (A, "b")]),
        ({"prompt": chat("a"), "completion": chat(None, "b")[1:], "image": "a.jpg"}, [(U, [IMAGE, "a"]), (A, "b")]),
        ({"prompt": [{"role": "system", "content": "s"}, *chat("a", "x", "c")], "completion": chat(None, "b")[1:],
          "images": ["a.jpg", "b.jpg"]},
         [(S, "s"), (U, [IMAGE, IMAGE, "a"]), (A, "x"), (U, "c"), (A, "b")]),
        ({"prompt": chat([{"type": "image"}, {"type": "text", "text": "a"}]), "completion": chat(None, "b")[1:],
          "images": ["a.jpg"]}, [(U, [IMAGE, "a"]), (A, "b")]),
        ({"messages": chat("a", "b")}, [(U, "a"), (A, "b")]),
        ({"messages": chat("a", "b"), "images": ["a.jpg"]}, [(U, [IMAGE, "a"]), (A, "b")]),
        ({"messages": chat("a", "b", "c", "d"), "images": ["a.jpg"]},
         [(U, [IMAGE, "a"]), (A, "b"), (U, "c"), (A, "d")]),
        ({"messages": chat("<image>", "b"), "images": ["a.jpg"]}, [(U, [IMAGE, "<image>"]), (A, "b")]),
        ({"messages": json.dumps(chat("a", "b"))}, [(U, "a"), (A, "b")]),
        ({"prompt": json.dumps(chat("a")), "completion": chat(None, "b")[1:]}, [(U, "a"), (A, "b")]),
        ({"messages": [*chat("a"), {"role": "assistant", "content": "", "tool_calls": [{"type": "function",
          "function": {"name": "light", "arguments": {"on": True}}}]}, {"role": "tool", "name": "light",
          "content": "on"}, {"role": "assistant", "content": "b"}]},
         [(U, "a"), (A, ("", ("light", {"on": True}))), (T, "on"), (A, "b")]),
    ],
    # VeOmni: docs/key_features/preprocessor_registry.md
    "veomni": [
        ({"conversations": [["user", ["image", None], ["text", "What?"]], ["assistant", ["text", "b"]]],
          "images": ["a.jpg"]}, [(U, [IMAGE, "What?"]), (A, ["b"])]),
        ({"conversations": [["user", ["text", "a"]], ["assistant", ["text", "b"]]]}, [(U, ["a"]), (A, ["b"])]),
        ({"conversations": [["user", ["text", "a"], ["image", None], ["text", "c"], ["image", None]],
                            ["assistant", ["text", "b"]]], "images": ["a.jpg", "b.jpg"]},
         [(U, ["a", IMAGE, "c", IMAGE]), (A, ["b"])]),
        ({"conversations": [["system", ["text", "s"]], ["user", ["text", "a"]], ["assistant", ["text", "b"]]]},
         [(S, ["s"]), (U, ["a"]), (A, ["b"])]),
        ({"conversations": json.dumps([["user", ["text", "a"]], ["assistant", ["text", "b"]]])},
         [(U, ["a"]), (A, ["b"])]),
        ({"conversations": [["user", ["video", None], ["text", "a"]], ["assistant", ["text", "b"]]],
          "videos": ["a.mp4"]}, [(U, [("video",), "a"]), (A, ["b"])]),
        ({"source": "qwen_omni_offline_av", "conversations": said("<image>\na", "b"), "images": [b"x"]},
         [(U, [IMAGE, "\na"]), (A, "b")]),
        ({"conversations": [["assistant", ["text", "b"]]]}, [(A, ["b"])]),
        ({"conversations": [["user", ["text", "a"]], ["assistant", ["text", "b"]], ["user", ["text", "c"]],
                            ["assistant", ["text", "d"]]]}, [(U, ["a"]), (A, ["b"]), (U, ["c"]), (A, ["d"])]),
        ({"conversations": [["user", ["image", None]], ["assistant", ["text", "b"]], ["user", ["image", None],
                            ["text", "c"]], ["assistant", ["text", "d"]]], "images": [b"x", b"y"]},
         [(U, [IMAGE]), (A, ["b"]), (U, [IMAGE, "c"]), (A, ["d"])]),
        ({"conversations": [["user", ["image", "a.jpg"], ["text", "a"]], ["assistant", ["text", "b"]]],
          "images": ["a.jpg"]}, [(U, [IMAGE, "a"]), (A, ["b"])]),
        ({"messages": [["user", ["text", "a"]], ["assistant", ["text", "b"]]]}, [(U, ["a"]), (A, ["b"])]),
        ({"conversations": [["user", ["text", ""]], ["assistant", ["text", "b"]]], "images": None},
         [(U, [""]), (A, ["b"])]),
        ({"conversations": [["user", ["text", "<image>"]], ["assistant", ["text", "b"]]]},
         [(U, ["<image>"]), (A, ["b"])]),
        ({"conversations": [["user", ["audio", None], ["text", "a"]], ["assistant", ["text", "b"]]],
          "audios": ["a.wav"]}, [(U, [("audio",), "a"]), (A, ["b"])]),
        ({"conversations": said("a", "b"), "source": "x"}, [(U, "a"), (A, "b")]),
        ({"conversations": said("<image>a<image>", "b"), "images": ["a.jpg", "b.jpg"]},
         [(U, [IMAGE, "a", IMAGE]), (A, "b")]),
    ],
    # LMMs-Engine: docs/models/qwenvl.md, load_from_json and load_from_hf of its data set
    "lmms_engine": [
        ({"messages": chat([{"type": "image_url", "image_url": {"url": "a.jpg"}}, {"type": "text", "text": "a"}],
                           [{"type": "text", "text": "b"}])}, [(U, [("image_url",), "a"]), (A, ["b"])]),
        ({"messages": chat([{"type": "image_url", "image_url": {"url": "image"}}, {"type": "text", "text": "a"}], "b"),
          "image": {"bytes": b"x", "path": None}}, [(U, [IMAGE, "a"]), (A, "b")]),
        ({"messages": chat([{"type": "image_url", "image_url": {"url": "x"}}] * 2, "b"), "image": [b"x", b"y"]},
         [(U, [IMAGE, IMAGE]), (A, "b")]),
        ({"messages": chat([{"type": "text", "text": "a"}], [{"type": "text", "text": "b"}])},
         [(U, ["a"]), (A, ["b"])]),
        ({"messages": chat([{"type": "text", "text": "a"}], "b"), "image": None}, [(U, ["a"]), (A, "b")]),
        ({"messages": chat([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": ""}}], "b"),
          "images": ["a.jpg"]}, [(U, ["a", IMAGE]), (A, "b")]),
        ({"messages": chat([{"type": "image_url", "image_url": {"url": "x"}}], "b", [{"type": "image_url", "image_url":
                           {"url": "y"}}, {"type": "text", "text": "c"}], "d"), "image": ["a.jpg", "b.jpg"]},
         [(U, [IMAGE]), (A, "b"), (U, [IMAGE, "c"]), (A, "d")]),
        ({"messages": chat([{"type": "video_url", "video_url": {"url": "a.mp4"}}, {"type": "text", "text": "a"}], "b")},
         [(U, [("video_url",), "a"]), (A, "b")]),
        ({"messages": chat([{"type": "audio_url", "audio_url": {"url": "a.wav"}}], "b")},
         [(U, [("audio_url",)]), (A, "b")]),
        ({"messages": chat("a", "b"), "image": []}, [(U, "a"), (A, "b")]),
        ({"messages": json.dumps(chat([{"type": "image_url", "image_url": {"url": "x"}}], "b")), "image": "a.jpg"},
         [(U, [IMAGE]), (A, "b")]),
        ({"messages": [{"role": "system", "content": [{"type": "text", "text": "s"}]}, *chat("a", "b")]},
         [(S, ["s"]), (U, "a"), (A, "b")]),
    ],
    "anthropic": [
        ({"system": "s", "messages": chat("a", "b")}, [(S, "s"), (U, "a"), (A, "b")]),
        ({"messages": chat([{"type": "text", "text": "a"}], [{"type": "text", "text": "b"}])},
         [(U, ["a"]), (A, ["b"])]),
        ({"messages": chat([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
                            {"type": "text", "text": "a"}], "b")}, [(U, [IMAGE, "a"]), (A, "b")]),
        ({"messages": [
            *chat("a", [{"type": "text", "text": "I look"},
                        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}}]),
            *chat([{"type": "tool_result", "tool_use_id": "t1", "content": "sun"}], "b")]},
         [(U, "a"), (A, ([{"type": "text", "text": "I look"}], ("weather", {"city": "Rome"}))), (T, "sun"), (A, "b")]),
        ({"messages": chat([{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "x"}]},
                            {"type": "text", "text": "a"}], "b")}, [(T, ["x"]), (U, ["a"]), (A, "b")]),
    ],
    # LLaMA-Factory: data/v1_sft_demo.jsonl, v1_multimodal_demo.jsonl, reason_tool_use_demo_50.jsonl
    "llamafactory": [
        ({"messages": chat([{"type": "text", "value": "a"}], [{"type": "text", "value": "b"}])},
         [(U, ["a"]), (A, ["b"])]),
        ({"messages": chat([{"type": "image_url", "value": "a.jpg"}, {"type": "text", "value": "a"}],
                           [{"type": "text", "value": "b"}])}, [(U, [("image_url",), "a"]), (A, ["b"])]),
        ({"messages": chat([{"type": "text", "value": "a"}], [{"type": "tool_call", "value": CALL}])},
         [(U, ["a"]), (A, (None, ("weather", {"city": "Rome"})))]),
        ({"messages": chat([{"type": "text", "value": "a"}],
                           [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "b"}])},
         [(U, ["a"]), (A, [("reasoning",), "b"])]),
    ],
    # The normal form itself, with a system prompt in a column
    "openai": [
        ({"messages": chat("a", "b"), "system": "s"}, [(S, "s"), (U, "a"), (A, "b")]),
        ({"messages": chat("a", "b"), "system_prompt": "s", "system": ""}, [(S, "s"), (U, "a"), (A, "b")]),
        ({"messages": json.dumps(chat("a", "b")), "system": "s"}, [(S, "s"), (U, "a"), (A, "b")]),
        ({"messages": [{"role": "system", "content": "t"}, *chat("a", "b")], "system": "s"},
         [(S, "t"), (U, "a"), (A, "b")]),
    ],
}  # fmt: skip
ROWS = [(form, record, expected) for form, examples in EXAMPLES.items() for record, expected in examples]


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


def test_the_table_has_every_form_that_a_setting_can_name() -> None:
    assert set(FORMS) == set(get_args(FormName))


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
        ("llava", {"conversations": said("<video>", "b"), "video": "a.mp4"}, "later_video", "videos"),
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
    ],
)  # fmt: skip
def test_a_record_that_does_not_fit_its_form_is_rejected_at_its_place(
    form: FormName, record: dict[str, Any], reason: str, place: str
) -> None:
    assert rejected(form, record) == (reason, place)


def test_the_prompt_of_trl_is_context_only() -> None:
    record = {"prompt": chat("a", "x", "c"), "completion": chat(None, "b")[1:]}
    assert [message.weight for message in read_record(record, reading("trl")).messages] == [0, 0, 0, 1]


def test_strings_of_trl_stay_plain_text() -> None:
    record = {"prompt": "The sky is", "completion": " blue."}
    assert normal_form(record, reading("trl")).record == record


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


def test_anthropic_tools_become_functions() -> None:
    record = {
        "messages": chat("a", "b"),
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
    }
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert normal_form(record, reading("anthropic")).record["tools"] == [{"type": "function", "function": function}]


def test_reasoning_parts_of_llamafactory_become_reasoning() -> None:
    (record, _) = EXAMPLES["llamafactory"][3]
    answer = read_record(record, reading("llamafactory")).messages[1]
    assert (answer.reasoning, answer.text) == ("hm", "b")


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


def test_a_fault_behind_a_system_column_has_its_place_in_the_record() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "poem"}]
    assert rejected("openai", {"messages": chat(parts, "b"), "system": "s"}) == (
        "unknown_part_type", "messages[0].content[1]",
    )  # fmt: skip
    assert rejected("openai", {"messages": chat("a", "b"), "system": 3}) == ("bad_content_type", "system")


def test_the_address_that_lmms_engine_leaves_out_takes_no_size_with_it() -> None:
    part = {"type": "image_url", "image_url": {"url": "x"}, "max_pixels": 100_000}
    (image,) = read_record({"messages": chat([part], "b"), "image": b"x"}, reading("lmms_engine")).images
    assert image.ask == Ask(None, 100_000)
    assert rejected("lmms_engine", {"messages": chat([{**part, "crop": 3}], "b"), "image": b"x"})[0] == "bad_part"


THOUGHT = {"type": "thinking", "thinking": "R"}
USE = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
REASON = {"type": "reasoning", "value": "R"}
TOOL_CALL = {"type": "tool_call", "value": CALL}


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


@pytest.mark.parametrize(("form", "parts"), [("anthropic", [THOUGHT, USE]), ("llamafactory", [REASON, TOOL_CALL])])
def test_a_thought_before_a_call_is_the_reasoning_of_the_turn(form: FormName, parts: list[Any]) -> None:
    answer = read_record({"messages": chat("a", parts)}, reading(form)).messages[1]
    assert (answer.reasoning, answer.text, len(answer.calls)) == ("R", "", 1)


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


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_reads_the_columns_that_all_records_may_have(form: FormName) -> None:
    columns = {"tools", "functions", "weight", "chat_template_kwargs", "system"}
    assert columns | {"images", "videos", "screenshot"} <= set(columns_read(reading(form)))
    assert columns <= set(form_columns(form))


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


@pytest.mark.parametrize("targets", ["assistant", "all", "last"])
def test_no_turn_of_trls_prompt_is_learned_whatever_the_targets(targets: str) -> None:
    record = {"prompt": [{**turn, "weight": 1} for turn in chat("a", "x", "c")], "completion": chat(None, "b")[1:]}
    messages = read_record(record, reading("trl", targets=targets)).messages
    assert [message.weight for message in messages] == [0, 0, 0, 1]


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
