"""Anthropic's Messages API, platform.claude.com/docs.

The pages build-with-claude/vision, tool-use, extended-thinking and prompt-caching, and api/messages.
"""

import json
from typing import Any

from tests.kit.forms.turns import CALLED, FUNCTION, IMAGE, A, Examples, S, T, U, answer, chat, text

_CACHE = {"cache_control": {"type": "ephemeral"}}
_TOOL = {"name": "weather", "description": "Tells the weather.", "input_schema": FUNCTION["parameters"]}
_PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
_THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "Ep8B"}
_HM = ("thinking",)


def _use(number: int) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": "weather", "input": {"city": "Rome"}}


def _result(number: int, **keys: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": f"toolu_{number}", **keys}


EXAMPLES: Examples = [
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
    ({"system": [{**text("s"), **_CACHE}], "messages": chat("a", "b")}, [(S, ["s"]), (U, "a"), (A, "b")]),
    ({"system": [text("s"), {**text("t"), **_CACHE}], "messages": chat([_PICTURE, text("a")], "b")},
     [(S, ["s", "t"]), (U, [IMAGE, "a"]), (A, "b")]),
    ({"messages": chat([{**text("a"), **_CACHE}], [{**text("b"), "citations": None}])}, [(U, ["a"]), (A, ["b"])]),
    ({"messages": chat([{"type": "image", "source": {"type": "url", "url": "https://a.org/a.jpg"}}, text("a")], "b")},
     [(U, [("image_url",), "a"]), (A, "b")]),
    ({"messages": chat([text("Image 1:"), _PICTURE, text("Image 2:"), {**_PICTURE, **_CACHE}, text("a")], "b")},
     [(U, ["Image 1:", IMAGE, "Image 2:", IMAGE, "a"]), (A, "b")]),
    ({"messages": chat("a", [_THOUGHT, text("b")], "c", "d")}, [(U, "a"), (A, [_HM, "b"]), (U, "c"), (A, "d")]),
    ({"messages": chat("a", [_THOUGHT, _use(1)], [_result(1, content="sun")], [text("b")]), "tools": [_TOOL]},
     [(U, "a"), (A, ([{"type": "thinking", "thinking": "hm", "signature": "Ep8B"}], CALLED)), (T, "sun"), (A, ["b"])]),
    ({"messages": chat("a", [_use(1), _use(2)], [_result(1, content="sun"), _result(2, content="rain")], "b"),
      "tools": [_TOOL]}, [(U, "a"), (A, (None, CALLED, CALLED)), (T, "sun"), (T, "rain"), (A, "b")]),
    ({"messages": chat("a", [_use(1)], [_result(1, content="Error: no such city", is_error=True)], "b")},
     [(U, "a"), (A, (None, CALLED)), (T, "Error: no such city"), (A, "b")]),
    ({"messages": chat("a", [_use(1)], [_result(1)], "b")}, [(U, "a"), (A, (None, CALLED)), (T, ""), (A, "b")]),
    ({"messages": chat("a", [_use(1)], [_result(1, content=[text("sun"), _PICTURE])], "b")},
     [(U, "a"), (A, (None, CALLED)), (T, ["sun", IMAGE]), (A, "b")]),
    ({"messages": chat("a", [{**_use(1), "input": {}}], [_result(1, content="sun")], "b")},
     [(U, "a"), (A, (None, ("weather", {}))), (T, "sun"), (A, "b")]),
    ({"messages": chat("a", [_use(1)], [{**_result(1, content="sun"), **_CACHE}], "b"), "tool_choice": {"type": "auto"},
      "tools": [{**_TOOL, **_CACHE}]}, [(U, "a"), (A, (None, CALLED)), (T, "sun"), (A, "b")]),
    ({"model": "m", "max_tokens": 9, "temperature": 1.0, "metadata": {"user_id": "1"}, "system": "s",
      "messages": chat([text("a")], [text("b")])}, [(S, "s"), (U, ["a"]), (A, ["b"])]),
    ({"messages": json.dumps(chat([_PICTURE, text("a")], "b"))}, [(U, [IMAGE, "a"]), (A, "b")]),
    ({"messages": [*chat([_PICTURE, text("a")], "b", "c"), answer("d", stop_reason="end_turn")]},
     [(U, [IMAGE, "a"]), (A, "b"), (U, "c"), (A, "d")]),
    ({"messages": chat("a", [text("I look"), _use(1)], [_result(1, content="sun"), text("and Oslo?")], [_use(2)],
                       [_result(2, content="snow")], "b")},
     [(U, "a"), (A, ([text("I look")], CALLED)), (T, "sun"), (U, ["and Oslo?"]), (A, (None, CALLED)), (T, "snow"),
      (A, "b")]),
]  # fmt: skip
