"""VeOmni (ByteDance-Seed/VeOmni): what its preprocessors read and make.

docs/key_features/preprocessor_registry.md, docs/examples/qwen3_vl.md and qwen3_omni_offline_av.md; the registry itself,
veomni/data/multimodal/preprocess.py, with the names of data sets in `source`; veomni/data/seed_omni/preprocess.py for
`veomni_omni_demo`.
"""

import json
from typing import Any

from tests.kit.forms.turns import IMAGE, A, Examples, S, U, chat, said

_PICTURE = {"type": "image"}


def _text(value: str) -> dict[str, Any]:
    return {"type": "text", "value": value}


EXAMPLES: Examples = [
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
    ({"source_name": "veomni_omni_demo", "conversations": chat([_text("a"), _PICTURE], [_text("b")]), "images": [b"x"]},
     [(U, ["a", IMAGE]), (A, ["b"])]),
    ({"source_name": "veomni_omni_demo", "images": [b"x", b"y"],
      "conversations": chat([_PICTURE, _text("a"), _PICTURE], [_text("b")], [_text("c")], [_text("d")])},
     [(U, [IMAGE, "a", IMAGE]), (A, ["b"]), (U, ["c"]), (A, ["d"])]),
    ({"source_name": "veomni_omni_demo", "images": [b"x"],
      "conversations": json.dumps(chat([_text("a"), _PICTURE], [_text("b")])).encode()},
     [(U, ["a", IMAGE]), (A, ["b"])]),
    ({"source_name": "veomni_omni_demo",
      "conversations": [{"role": "system", "content": [_text("s")]}, *chat([_text("a")], [_text("b")])]},
     [(S, ["s"]), (U, ["a"]), (A, ["b"])]),
    # Generation of a picture: read, and then rejected, as no model here writes pictures.
    ({"source_name": "veomni_omni_demo", "conversations": chat([_text("a")], [_PICTURE, _text("b")]), "images": [b"x"]},
     [(U, ["a"]), (A, [IMAGE, "b"])]),
    ({"source_name": "sharegpt4v_sft", "conversations": said("<image>\na", "b", "c", "d"), "images": [b"x"]},
     [(U, [IMAGE, "\na"]), (A, "b"), (U, "c"), (A, "d")]),
    # Data sets for which VeOmni has a preprocessor each: those of turns.
    ({"source": "ArxivQA", "conversations": said("<image>\na", "b"), "images": ["a.jpg"]},
     [(U, [IMAGE, "\na"]), (A, "b")]),
    ({"source": "CHartQA", "conversations": said("<image>\nHow many?", "3"), "images": [b"x"]},
     [(U, [IMAGE, "\nHow many?"]), (A, "3")]),
    ({"source": "wikihow_ct_0904", "conversations": said("a", "b", "<image>\nc", "d"), "images": ["a.jpg"]},
     [(U, "a"), (A, "b"), (U, [IMAGE, "\nc"]), (A, "d")]),
    ({"source": "LLaVA-Video-178K", "conversations": said("<image>\na", "b"), "videos": ["a.mp4"]},
     [(U, [("video",), "\na"]), (A, "b")]),
    ({"source": "VoiceAssistant", "conversations": said("<audio>", "b"), "audios": ["a.wav"]},
     [(U, [("audio",)]), (A, "b")]),
    ({"source": "seed_edit", "conversations": said("<image>a", "<image>"), "images": [b"x", b"y"]},
     [(U, [IMAGE, "a"]), (A, [IMAGE])]),
    # And those of captions.
    ({"source": "sam", "conversations": "a dog", "images": [b"x"]}, [(U, [IMAGE]), (A, "a dog")]),
    ({"source": "pixelprose", "conversations": "This image displays a dog.", "images": ["a.jpg"]},
     [(U, [IMAGE]), (A, "This image displays a dog.")]),
    ({"source": "chart_to_table", "conversations": "x | y\n1 | 2", "images": ["a.png"], "videos": []},
     [(U, [IMAGE]), (A, "x | y\n1 | 2")]),
]  # fmt: skip
