"""Alpaca: data/README.md and data/alpaca_en_demo.json of hiyouga/LLaMA-Factory, alpaca.jsonl of ms-swift's tests."""

from tests.kit.forms.turns import IMAGE, A, Examples, S, U

EXAMPLES: Examples = [
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
]  # fmt: skip
