"""LLaVA: docs/Finetune_Custom_Data.md of haotian-liu/LLaVA.

And the same columns elsewhere: qwen-vl-finetune/README.md of QwenLM/Qwen3-VL, and data/README.md of
hiyouga/LLaMA-Factory, Multimodal Image Dataset.
"""

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
    # Qwen's example of grounding: the answer is text, whatever the text holds.
    ({"image": "a.jpg", "conversations": said("<image>\nLocate it", '{\n"bbox_2d": [1, 2, 3, 4]\n}')},
     [(U, [IMAGE, "\nLocate it"]), (A, '{\n"bbox_2d": [1, 2, 3, 4]\n}')]),
    ({"video": "a.mp4", "conversations": said("<video>\na", "b")}, [(U, [("video",), "\na"]), (A, "b")]),
    ({"video": "a.mp4", "conversations": said("<image>\na", "b")}, [(U, [("video",), "\na"]), (A, "b")]),
    ({"image": "a.jpg", "conversations": json.dumps(said("<image>a", "b"))}, [(U, [IMAGE, "a"]), (A, "b")]),
]  # fmt: skip
