"""ShareGPT, as LLaMA-Factory and ms-swift have it.

hiyouga/LLaMA-Factory: data/README.md, data/glaive_toolcall_en_demo.json. modelscope/ms-swift: Custom-dataset.md,
tests/llm/data/conversations.jsonl and sharegpt.jsonl.
"""

import json

from tests.kit.forms.turns import CALL, A, Examples, S, T, U, said

EXAMPLES: Examples = [
    ({"conversations": said("a", "b")}, [(U, "a"), (A, "b")]),
    ({"conversations": said("a", "b", "c", "d")}, [(U, "a"), (A, "b"), (U, "c"), (A, "d")]),
    ({"conversations": said("a", "b"), "system": "s"}, [(S, "s"), (U, "a"), (A, "b")]),
    ({"conversations": said("a", "b"), "system": ""}, [(U, "a"), (A, "b")]),
    ({"conversations": said("a", "b"), "system": None, "tools": ""}, [(U, "a"), (A, "b")]),
    ({"conversations": [{"from": "system", "value": "s"}, *said("a", "b")]}, [(S, "s"), (U, "a"), (A, "b")]),
    # A system turn at the start counts more than the column.
    ({"conversations": [{"from": "system", "value": "s"}, *said("a", "b")], "system": "t"},
     [(S, "s"), (U, "a"), (A, "b")]),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": CALL},
                        {"from": "observation", "value": "sun"}, {"from": "gpt", "value": "b"}]},
     [(U, "a"), (A, (None, ("weather", {"city": "Rome"}))), (T, "sun"), (A, "b")]),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": f"[{CALL}, {CALL}]"}]},
     [(U, "a"), (A, (None, *[("weather", {"city": "Rome"})] * 2))]),
    ({"conversations": [{"from": "human", "value": "a"},
                        {"from": "function_call", "value": f"<think>\nhm\n</think>\n\n{CALL}"}]},
     [(U, "a"), (A, ("<think>\nhm\n</think>", ("weather", {"city": "Rome"})))]),
    ({"conversation": said("a", "b")}, [(U, "a"), (A, "b")]),
    ({"conversation": [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}], "system": "s"},
     [(S, "s"), (U, "a"), (A, "b"), (U, "c"), (A, "d")]),
    ({"messages": said("a", "b")}, [(U, "a"), (A, "b")]),
    ({"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]},
     [(U, "a"), (A, "b")]),
    ({"conversations": [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]}, [(U, "a"), (A, "b")]),
    ({"conversations": json.dumps(said("a", "b"))}, [(U, "a"), (A, "b")]),
    ({"conversations": said("write <image> in HTML", "b")}, [(U, "write <image> in HTML"), (A, "b")]),
    ({"conversations": said("a", "<think>\nx\n</think>\nb")}, [(U, "a"), (A, "<think>\nx\n</think>\nb")]),
    ({"conversations": [{"from": "human", "value": "a", "role": None, "content": None}, *said("", "b")[1:]]},
     [(U, "a"), (A, "b")]),
    ({"conversations": said("", "")}, [(U, ""), (A, "")]),
]  # fmt: skip
