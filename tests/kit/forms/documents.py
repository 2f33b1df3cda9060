"""Texts without turns, and texts with pictures between them.

The columns are those of the cards on the hub: allenai/c4, HuggingFaceFW/fineweb, wikimedia/wikipedia,
roneneldan/TinyStories, the Pile, RedPajama; data/c4_demo.jsonl of hiyouga/LLaMA-Factory; dataset_formats.md of TRL,
Language modeling. Interleaved: HuggingFaceM4/OBELICS, whose lists have one length, with null at the other's places.
"""

import json

from tests.kit.forms.turns import LEARNED, PICTURE, Examples

TEXTS: Examples = [
    ({"text": "The sky is blue."}, [(LEARNED, "The sky is blue.")]),
    ({"text": "a", "timestamp": "2019-04-25T12:57:54Z", "url": "https://a.org/a"}, [(LEARNED, "a")]),
    ({"text": "a", "id": "<urn:uuid:1>", "dump": "CC-MAIN-2024-10", "url": "https://a.org", "date": "2024-03-01",
      "file_path": "s3://b/a.warc.gz", "language": "en", "language_score": 0.9, "token_count": 1}, [(LEARNED, "a")]),
    ({"text": "a", "meta": {"pile_set_name": "PubMed Abstracts"}}, [(LEARNED, "a")]),
    ({"id": "12", "url": "https://a.org/A", "title": "A", "text": "A is a letter."}, [(LEARNED, "A is a letter.")]),
    ({"text": "a", "meta": '{"language": "en"}', "red_pajama_subset": "c4"}, [(LEARNED, "a")]),
    ({"text": "a", "added": "2024-01-01", "source": "web", "metadata": None}, [(LEARNED, "a")]),
    ({"text": "Once upon a time.\nThe end.\n"}, [(LEARNED, "Once upon a time.\nThe end.\n")]),
    ({"text": " a "}, [(LEARNED, " a ")]),
    ({"text": "\n\n# Title\r\n\ta\n"}, [(LEARNED, "\n\n# Title\r\n\ta\n")]),
    ({"text": "天空是蓝色的。"}, [(LEARNED, "天空是蓝色的。")]),
    ({"text": "a\u2028b\U0001f600"}, [(LEARNED, "a\u2028b\U0001f600")]),
    ({"text": "def f(x):\n\treturn x\n", "path": "a.py", "license": "mit"}, [(LEARNED, "def f(x):\n\treturn x\n")]),
    ({"text": '{"messages": []}'}, [(LEARNED, '{"messages": []}')]),
    ({"text": "<image> is a tag, <|im_end|> is text"}, [(LEARNED, "<image> is a tag, <|im_end|> is text")]),
    ({"text": "a", "messages": None, "images": None}, [(LEARNED, "a")]),
    ({"text": "a", "weight": 0.5}, [(LEARNED, "a")]),
    ({"text": " "}, [(LEARNED, " ")]),
    ({"text": "null"}, [(LEARNED, "null")]),
    ({"text": "### Instruction:\ni\n\n### Response:\nb"}, [(LEARNED, "### Instruction:\ni\n\n### Response:\nb")]),
]  # fmt: skip

_A, _B = "https://a.org/a.jpg", "https://a.org/b.png"
_META = json.dumps([{"document_url": "https://a.org", "alt_text": "a dog"}, None])

INTERLEAVED: Examples = [
    ({"texts": [None, "a"], "images": [_A, None], "metadata": _META, "general_metadata": '{"url": "https://a.org"}'},
     [(PICTURE, _A), (LEARNED, "a")]),
    ({"images": [_A, None, _B], "texts": [None, "a", None]}, [(PICTURE, _A), (LEARNED, "a"), (PICTURE, _B)]),
    ({"texts": ["a", None], "images": [None, _A]}, [(LEARNED, "a"), (PICTURE, _A)]),
    ({"texts": ["a", None, "b"], "images": [None, "a.jpg", None]},
     [(LEARNED, "a"), (PICTURE, "a.jpg"), (LEARNED, "b")]),
    ({"texts": [None, None, "a"], "images": [_A, _B, None]}, [(PICTURE, _A), (PICTURE, _B), (LEARNED, "a")]),
    ({"texts": ["a", "b", None], "images": [None, None, _A]}, [(LEARNED, "a"), (LEARNED, "b"), (PICTURE, _A)]),
    ({"texts": ["a", None, "b", None, "c"], "images": [None, _A, None, _B, None]},
     [(LEARNED, "a"), (PICTURE, _A), (LEARNED, "b"), (PICTURE, _B), (LEARNED, "c")]),
    ({"texts": ["a"], "images": [None]}, [(LEARNED, "a")]),
    ({"texts": ["a", "b"], "images": []}, [(LEARNED, "a"), (LEARNED, "b")]),
    ({"texts": ["a", "b"]}, [(LEARNED, "a"), (LEARNED, "b")]),
    ({"texts": ["a", None], "images": [None, b"x"]}, [(LEARNED, "a"), (PICTURE, b"x")]),
    ({"texts": ["a", None], "images": [None, {"bytes": b"x", "path": "1.jpg"}]}, [(LEARNED, "a"), (PICTURE, b"x")]),
    ({"texts": ["a", None], "images": [None, {"bytes": None, "path": "1.jpg"}]}, [(LEARNED, "a"), (PICTURE, "1.jpg")]),
    ({"texts": ["a", None], "images": [{"bytes": None, "path": None}, {"bytes": b"x", "path": None}]},
     [(LEARNED, "a"), (PICTURE, b"x")]),
    ({"texts": ["a", None], "images": [None, "data:image/png;base64,AA=="]},
     [(LEARNED, "a"), (PICTURE, "data:image/png;base64,AA==")]),
    ({"texts": ["a\n\nb", None], "images": [None, _A]}, [(LEARNED, "a\n\nb"), (PICTURE, _A)]),
    ({"texts": ["", None, "a"], "images": [None, _A, None]}, [(LEARNED, ""), (PICTURE, _A), (LEARNED, "a")]),
    ({"texts": ["<image> is a tag", None], "images": [None, _A]}, [(LEARNED, "<image> is a tag"), (PICTURE, _A)]),
    ({"texts": ["狗", None], "images": [None, "狗.jpg"], "messages": None}, [(LEARNED, "狗"), (PICTURE, "狗.jpg")]),
    ({"texts": [None, "a"], "images": ["images/1.jpg", None], "id": 7, "weight": 2}, [(PICTURE, "images/1.jpg"),
      (LEARNED, "a")]),
]  # fmt: skip
