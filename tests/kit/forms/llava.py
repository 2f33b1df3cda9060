"""LLaVA: Finetune_Custom_Data.md; mllm_demo.json of LLaMA-Factory under the keys of ShareGPT."""

import json

from tests.kit.forms.turns import IMAGE, A, Examples, S, U, said

EXAMPLES: Examples = [
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
]  # fmt: skip
