"""TRL (huggingface/trl): docs/source/dataset_formats.md and sft_trainer.md."""

import json

from tests.kit.forms.turns import CALLED, CONTEXT, IMAGE, LEARNED, TOOL, A, Examples, S, T, U, answer, chat, text

_CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}

EXAMPLES: Examples = [
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
    ({"prompt": "The sky is", "completion": " blue."}, [(CONTEXT, "The sky is"), (LEARNED, " blue.")]),
    ({"prompt": "", "completion": "b"}, [(CONTEXT, ""), (LEARNED, "b")]),
    ({"messages": [*chat("a"), {"role": "assistant", "tool_calls": [_CALL]},
                   {"role": "tool", "name": "weather", "content": "sun"}, answer("b")], "tools": [TOOL]},
     [(U, "a"), (A, (None, CALLED)), (T, "sun"), (A, "b")]),
    ({"prompt": chat("a"), "completion": [{"role": "assistant", "tool_calls": [_CALL]},
                                          {"role": "tool", "name": "weather", "content": "sun"}, answer("b")],
      "tools": json.dumps([TOOL])}, [(U, "a"), (A, (None, CALLED)), (T, "sun"), (A, "b")]),
    ({"messages": [*chat("a"), answer("b", thinking="hm")], "chat_template_kwargs": {"enable_thinking": True}},
     [(U, "a"), (A, "b")]),
    ({"messages": chat([{"type": "image"}, text("a")], [text("b")]), "images": ["a.jpg"]},
     [(U, [IMAGE, "a"]), (A, ["b"])]),
    ({"messages": chat([text("a")], [text("b")]), "images": []}, [(U, ["a"]), (A, ["b"])]),
    ({"messages": [{"role": "system", "content": [text("s")]}, *chat([{"type": "image"}, {"type": "image"}, text("a")],
                   [text("b")])], "images": [{"bytes": b"x", "path": None}, {"bytes": b"y", "path": None}]},
     [(S, ["s"]), (U, [IMAGE, IMAGE, "a"]), (A, ["b"])]),
]  # fmt: skip
