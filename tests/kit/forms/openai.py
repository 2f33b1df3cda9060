"""OpenAI, the normal form itself, and the parts that transformers adds.

platform.openai.com/docs/guides: text, images-vision, function-calling, supervised-fine-tuning. The parts are those of
docs/source/en/chat_templating_multimodal.md of huggingface/transformers.
"""

import json

from tests.kit.forms.turns import ADDRESS, CALLED, FUNCTION, IMAGE, TOOL, A, Examples, S, T, U, answer, chat, text

_ARGUMENTS = '{"city": "Rome"}'
_CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": _ARGUMENTS}}
_FUNCTION = {"name": "weather", "arguments": {"city": "Rome"}}
_RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "sun"}
_WITH_TEXT = ("weather", _ARGUMENTS)

EXAMPLES: Examples = [
    ({"messages": chat("a", "b"), "system": "s"}, [(S, "s"), (U, "a"), (A, "b")]),
    ({"messages": chat("a", "b"), "system_prompt": "s", "system": ""}, [(S, "s"), (U, "a"), (A, "b")]),
    ({"messages": json.dumps(chat("a", "b")), "system": "s"}, [(S, "s"), (U, "a"), (A, "b")]),
    ({"messages": [{"role": "system", "content": "t"}, *chat("a", "b")], "system": "s"},
     [(S, "t"), (U, "a"), (A, "b")]),
    ({"messages": chat("a", "b")}, [(U, "a"), (A, "b")]),
    ({"messages": [{"role": "system", "content": "s"}, *chat("a", "b", "c", "d")]},
     [(S, "s"), (U, "a"), (A, "b"), (U, "c"), (A, "d")]),
    ({"messages": [*chat("a"), answer("b", weight=0), *chat("c"), answer("d", weight=1)]},
     [(U, "a"), (A, "b"), (U, "c"), (A, "d")]),
    ({"messages": chat([text("a"), {"type": "image_url", "image_url": {"url": "https://a.org/a.jpg"}}], "b")},
     [(U, ["a", ADDRESS]), (A, "b")]),
    ({"messages": chat([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}],
                       "b")}, [(U, [ADDRESS]), (A, "b")]),
    ({"messages": chat([{"type": "image_url", "image_url": "a.jpg"}, text("a")], [text("b")])},
     [(U, [ADDRESS, "a"]), (A, ["b"])]),
    ({"messages": chat([{"type": "image", "image": "a.jpg"}, text("a")], "b")}, [(U, [IMAGE, "a"]), (A, "b")]),
    ({"messages": chat([{"type": "image", "url": "https://a.org/a.jpg"}, {"type": "image", "path": "b.jpg"},
                        {"type": "image", "base64": "AA=="}, text("a")], "b")},
     [(U, [IMAGE, IMAGE, IMAGE, "a"]), (A, "b")]),
    ({"messages": chat([{"type": "image"}, text("a")], [text("b")]), "images": ["a.jpg"]},
     [(U, [IMAGE, "a"]), (A, ["b"])]),
    ({"messages": chat([{"type": "image", "image": "a.jpg", "max_pixels": 50176}, text("a")], "b")},
     [(U, [IMAGE, "a"]), (A, "b")]),
    ({"messages": [*chat("a"), answer(None, tool_calls=[_CALL]), _RESULT, answer("b")], "tools": [TOOL]},
     [(U, "a"), (A, (None, _WITH_TEXT)), (T, "sun"), (A, "b")]),
    ({"messages": [*chat("a"), answer("I look", tool_calls=[_CALL, _CALL]), _RESULT, _RESULT, answer("b")],
      "tools": [TOOL], "parallel_tool_calls": True},
     [(U, "a"), (A, ("I look", _WITH_TEXT, _WITH_TEXT)), (T, "sun"), (T, "sun"), (A, "b")]),
    ({"messages": [*chat("a"), answer("", tool_calls=[{"function": _FUNCTION}])]},
     [(U, "a"), (A, ("", CALLED))]),
    ({"messages": [*chat("a"), answer(None, function_call={"name": "weather", "arguments": _ARGUMENTS}),
                   answer("b")], "functions": [FUNCTION]}, [(U, "a"), (A, None), (A, "b")]),
    ({"messages": [*chat("a"), answer("b", reasoning_content="hm")]}, [(U, "a"), (A, "b")]),
    ({"messages": [*chat("a"), answer("b", refusal=None, audio=None, annotations=[])]}, [(U, "a"), (A, "b")]),
    ({"messages": [{"role": "user", "name": "ada", "content": "a"}, answer([text("b"), text("c")])]},
     [(U, "a"), (A, ["b", "c"])]),
]  # fmt: skip
