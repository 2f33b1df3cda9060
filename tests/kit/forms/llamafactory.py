"""LLaMA-Factory's second form, in the folder data of hiyouga/LLaMA-Factory.

v1_sft_demo.jsonl, v1_multimodal_demo.jsonl, reason_tool_use_demo_50.jsonl.
"""

import json
from typing import Any

from tests.kit.forms.turns import ADDRESS, CALL, CALLED, TOOL, A, Examples, S, T, U, answer, chat

_HM = ("reasoning",)


def _part(kind: str, value: str) -> dict[str, str]:
    return {"type": kind, "value": value}


def _text(value: str) -> dict[str, str]:
    return _part("text", value)


def _weighted(*contents: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Turns with the weights that LLaMA-Factory's converters write."""
    return [{**turn, "loss_weight": float(i % 2)} for i, turn in enumerate(chat(*contents))]


_CALL, _REASON = _part("tool_call", CALL), _part("reasoning", "hm")
_SYSTEM: dict[str, Any] = {"role": "system", "content": [_text("s")]}
_RESULT: dict[str, Any] = {"role": "tool", "content": [_text("sun")]}
_TEXT_CALL = _part("tool_call", json.dumps({"name": "weather", "arguments": '{"city": "Rome"}'}))
_PICTURE, _VIDEO, _AUDIO = _part("image_url", "a.jpg"), _part("video_url", "a.mp4"), _part("audio_url", "a.wav")

EXAMPLES: Examples = [
    ({"messages": chat([{"type": "text", "value": "a"}], [{"type": "text", "value": "b"}])},
     [(U, ["a"]), (A, ["b"])]),
    ({"messages": chat([{"type": "image_url", "value": "a.jpg"}, {"type": "text", "value": "a"}],
                       [{"type": "text", "value": "b"}])}, [(U, [("image_url",), "a"]), (A, ["b"])]),
    ({"messages": chat([{"type": "text", "value": "a"}], [{"type": "tool_call", "value": CALL}])},
     [(U, ["a"]), (A, (None, ("weather", {"city": "Rome"})))]),
    ({"messages": chat([{"type": "text", "value": "a"}],
                       [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "b"}])},
     [(U, ["a"]), (A, [("reasoning",), "b"])]),
    ({"messages": _weighted([_text("a")], [_text("b")])}, [(U, ["a"]), (A, ["b"])]),
    ({"messages": [{**_SYSTEM, "loss_weight": 0.0}, *_weighted([_text("a")], [_text("b")])]},
     [(S, ["s"]), (U, ["a"]), (A, ["b"])]),
    ({"messages": _weighted([_text("a")], [_text("b")], [_text("c")], [_text("d")])},
     [(U, ["a"]), (A, ["b"]), (U, ["c"]), (A, ["d"])]),
    ({"messages": _weighted([_PICTURE, _part("image_url", "b.jpg"), _text("a")], [_text("b")])},
     [(U, [ADDRESS, ADDRESS, "a"]), (A, ["b"])]),
    ({"messages": _weighted([_PICTURE, _text("a")], [_text("b")], [_PICTURE, _text("c")], [_text("d")])},
     [(U, [ADDRESS, "a"]), (A, ["b"]), (U, [ADDRESS, "c"]), (A, ["d"])]),
    ({"messages": _weighted([_VIDEO, _text("a")], [_text("b")])}, [(U, [("video_url",), "a"]), (A, ["b"])]),
    ({"messages": _weighted([_AUDIO, _text("a")], [_text("b")])}, [(U, [("audio_url",), "a"]), (A, ["b"])]),
    ({"messages": [_SYSTEM, *chat([_text("a")], [_REASON, _text("b")])], "tools": json.dumps([TOOL])},
     [(S, ["s"]), (U, ["a"]), (A, [_HM, "b"])]),
    ({"messages": [_SYSTEM, *chat([_text("a")], [_REASON, _CALL]), _RESULT, answer([_REASON, _text("b")])],
      "tools": json.dumps([TOOL])},
     [(S, ["s"]), (U, ["a"]), (A, ([{"type": "reasoning", "reasoning": "hm"}], CALLED)), (T, ["sun"]),
      (A, [_HM, "b"])]),
    ({"messages": [*chat([_text("a")], [_REASON, _CALL, _CALL]), _RESULT, answer([_text("b")])],
      "tools": json.dumps([TOOL])},
     [(U, ["a"]), (A, ([{"type": "reasoning", "reasoning": "hm"}], CALLED, CALLED)), (T, ["sun"]), (A, ["b"])]),
    ({"messages": [*chat([_text("a")], [_CALL]), _RESULT, answer([_text("b")]),
                   *chat([_text("c")], [_CALL]), _RESULT, answer([_text("d")])]},
     [(U, ["a"]), (A, (None, CALLED)), (T, ["sun"]), (A, ["b"]),
      (U, ["c"]), (A, (None, CALLED)), (T, ["sun"]), (A, ["d"])]),
    ({"messages": [*chat([_text("a")], [_text("I look"), _CALL]), _RESULT, answer([_text("b")])]},
     [(U, ["a"]), (A, ([{"type": "text", "text": "I look"}], CALLED)), (T, ["sun"]), (A, ["b"])]),
    ({"messages": chat([_text("a")], [_TEXT_CALL])},
     [(U, ["a"]), (A, (None, ("weather", '{"city": "Rome"}')))]),
    ({"messages": json.dumps(_weighted([_text("a")], [_text("b")]))}, [(U, ["a"]), (A, ["b"])]),
    ({"messages": _weighted([_text("你好")], [_text("你好！")]), "extra_info": "x", "_dataset_name": "d"},
     [(U, ["你好"]), (A, ["你好！"])]),
    ({"messages": [*_weighted([_text("a")], [_text("b")]), *chat([_text("c")]), answer([_text("d")], loss_weight=0.0)]},
     [(U, ["a"]), (A, ["b"]), (U, ["c"]), (A, ["d"])]),
]  # fmt: skip
