"""LMMs-Engine (EvolvingLMMs-Lab/lmms-engine): docs/models/qwenvl.md, src/lmms_engine/datasets/vision_dataset.py.

The functions load_from_json and load_from_hf there: addresses of pictures in the parts, and pictures in a column.
"""

import json
from typing import Any

from tests.kit.forms.turns import ADDRESS, IMAGE, A, Examples, S, U, chat, text


def _address(url: str, **keys: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **keys}}


EXAMPLES: Examples = [
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
    ({"messages": chat([_address("a.jpg"), text("a")], [text("b")], [_address("b.jpg"), text("c")], [text("d")])},
     [(U, [ADDRESS, "a"]), (A, ["b"]), (U, [ADDRESS, "c"]), (A, ["d"])]),
    ({"messages": [{"role": "system", "content": [text("s")]}, *chat([_address("x"), text("a")], [text("b")])],
      "image": [{"bytes": b"x", "path": "1.png"}]}, [(S, ["s"]), (U, [IMAGE, "a"]), (A, ["b"])]),
    ({"messages": chat([text("a"), _address("x"), text("c"), _address("y")], [text("b")]), "image": [b"x", b"y"]},
     [(U, ["a", IMAGE, "c", IMAGE]), (A, ["b"])]),
    ({"messages": chat([_address("x", detail="high"), text("a")], [text("b")]), "image": b"x"},
     [(U, [IMAGE, "a"]), (A, ["b"])]),
    ({"messages": chat([_address("a.jpg", detail="low"), text("a")], [text("b")])}, [(U, [ADDRESS, "a"]), (A, ["b"])]),
    ({"messages": chat([_address("a.jpg"), {"type": "video_url", "video_url": {"url": "a.mp4"}}, text("a")],
                       [text("b")])}, [(U, [ADDRESS, ("video_url",), "a"]), (A, ["b"])]),
    ({"messages": chat([text("a")], [text("b")]), "image": {"bytes": None, "path": None}}, [(U, ["a"]), (A, ["b"])]),
    ({"id": "7", "messages": chat([_address("1"), text("a")], [text("b")], [text("c")], [text("d")]),
      "image": {"bytes": b"x", "path": "1.png"}}, [(U, [IMAGE, "a"]), (A, ["b"]), (U, ["c"]), (A, ["d"])]),
]  # fmt: skip
