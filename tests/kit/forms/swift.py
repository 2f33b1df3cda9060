"""ms-swift (modelscope/ms-swift): docs/source_en/Customization/Custom-dataset.md, tests/llm/data/*.jsonl.

And what LLaMA-Factory reads in the same way: data/mllm_demo.json of hiyouga/LLaMA-Factory.
"""

from tests.kit.forms.turns import CALL, IMAGE, A, Examples, S, T, U, answer, chat

EXAMPLES: Examples = [
    ({"messages": chat("a", "b")}, [(U, "a"), (A, "b")]),
    ({"messages": [{"role": "system", "content": "s"}, *chat("a", "b")]}, [(S, "s"), (U, "a"), (A, "b")]),
    ({"messages": chat("<image>What?", "b"), "images": ["a.jpg"]}, [(U, [IMAGE, "What?"]), (A, "b")]),
    ({"messages": chat("<image>a", "b", "c<image>", "d"), "images": ["a.jpg", "a.jpg"]},
     [(U, [IMAGE, "a"]), (A, "b"), (U, ["c", IMAGE]), (A, "d")]),
    ({"messages": chat("a", "b"), "images": ["a.jpg", "b.jpg"]}, [(U, [IMAGE, IMAGE, "a"]), (A, "b")]),
    ({"messages": [{"role": "system", "content": "s"}, *chat("a", "b")], "images": ["a.jpg"]},
     [(S, "s"), (U, [IMAGE, "a"]), (A, "b")]),
    ({"query": "a", "response": "b"}, [(U, "a"), (A, "b")]),
    ({"query": "a", "response": "b", "system": "s", "history": [["x", "y"]]},
     [(S, "s"), (U, "x"), (A, "y"), (U, "a"), (A, "b")]),
    ({"query": "<image>a", "response": "b", "image": "a.jpg"}, [(U, [IMAGE, "a"]), (A, "b")]),
    ({"query": "a", "response": "b", "images": ["a.jpg"]}, [(U, [IMAGE, "a"]), (A, "b")]),
    ({"question": "a", "answer": "b"}, [(U, "a"), (A, "b")]),
    ({"problem": "a", "solution": "b"}, [(U, "a"), (A, "b")]),
    ({"query": "a", "response": ["b", "c"]}, [(U, "a"), (A, "b")]),
    ({"system_prompt": "s", "prompt": "a", "response": "b"}, [(S, "s"), (U, "a"), (A, "b")]),
    ({"instruction": "i", "input": "j", "output": "b"}, [(U, "i\nj"), (A, "b")]),
    ({"conversation": [{"human": "a", "assistant": "b"}], "system": "s"}, [(S, "s"), (U, "a"), (A, "b")]),
    ({"messages": [*chat("a"), *[{"role": "tool_call", "content": CALL}] * 2,
                   *[{"role": "tool_response", "content": "sun"}] * 2, {"role": "assistant", "content": "b"}]},
     [(U, "a"), (A, (None, *[("weather", {"city": "Rome"})] * 2)), (T, "sun"), (T, "sun"), (A, "b")]),
    ({"messages": [*chat("<image>a", "<think>\nx\n</think>\n"), {"role": "tool_call", "content": CALL},
                   {"role": "tool", "content": '{"screen": "<image>"}'}, {"role": "assistant", "content": "b"}],
      "images": ["a.png", "b.png"]},
     [(U, [IMAGE, "a"]), (A, ("<think>\nx\n</think>\n", ("weather", {"city": "Rome"}))),
      (T, ['{"screen": "', IMAGE, '"}']), (A, "b")]),
    ({"messages": [*chat("a", "<think>\nx\n</think>\n"), {"role": "assistant", "content": "b"}]},
     [(U, "a"), (A, "<think>\nx\n</think>\nb")]),
    ({"messages": chat([{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "a"}], "b")},
     [(U, [IMAGE, "a"]), (A, "b")]),
    ({"messages": chat("a", "b"), "objects": {"ref": [], "bbox": []}}, [(U, "a"), (A, "b")]),
    # The section on grounding.
    ({"messages": chat("<image>Find the <ref-object>", "<bbox><bbox>"), "images": ["a.jpg"],
      "objects": {"ref": ["dog"], "bbox": [[1, 2, 3, 4], [10.5, 5, 60, 40]]}},
     [(U, [IMAGE, "Find the ", "dog"]), (A, [("box", [1, 2, 3, 4]), ("box", [10.5, 5, 60, 40])])]),
    ({"messages": chat("<image>Open it", "click(start_box='<bbox>')"), "images": ["a.png"],
      "objects": {"ref": [], "bbox": [[61, 22]]}},
     [(U, [IMAGE, "Open it"]), (A, ["click(start_box='", ("points", [61, 22]), "')"])]),
    # multi_modal_1.jsonl, _2, _3: pictures by address, and beside a query without tags.
    ({"query": "<img>a.jpg</img>a", "response": "b"}, [(U, [IMAGE, "a"]), (A, "b")]),
    ({"query": "<audio>a.wav</audio>a", "response": "b"}, [(U, [("audio",), "a"]), (A, "b")]),
    ({"messages": chat("<audio>a.wav</audio>a<img>a.jpg</img>", "b")}, [(U, [("audio",), "a", IMAGE]), (A, "b")]),
    ({"messages": chat("a", "b"), "audios": ["a.wav", "b.wav"]}, [(U, [("audio",), ("audio",), "a"]), (A, "b")]),
    ({"query": "<img>a.jpg</img><img>b.jpg</img>c", "response": "d", "history": [["a", "b"]]},
     [(U, "a"), (A, "b"), (U, [IMAGE, IMAGE, "c"]), (A, "d")]),
    ({"query": "c", "response": "d", "history": [["a", "b"]], "images": ["a.jpg", "b.jpg"]},
     [(U, [IMAGE, IMAGE, "a"]), (A, "b"), (U, "c"), (A, "d")]),
    ({"query": "<img>a</img>", "response": "b", "images": ["a.jpg"]}, [(U, [IMAGE, "<img>a</img>"]), (A, "b")]),
    # Flags, options of a template and channels.
    ({"messages": [*chat("a"), answer("<think>\nx\n</think>\n", loss_scale=2.0), answer("b", loss_scale=2.0)]},
     [(U, "a"), (A, "<think>\nx\n</think>\nb")]),
    ({"messages": chat("<image>a", "b"), "images": ["a.jpg"], "chat_template_kwargs": {"enable_thinking": False},
      "channel": "math"}, [(U, [IMAGE, "a"]), (A, "b")]),
]  # fmt: skip
