"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: content is a string or parts, e.g.

{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
"""

from typing import Any

from lmms.prep.parts import Text
from lmms.prep.records import Record


def template_messages(record: Record) -> list[dict[str, Any]]:
    """Parts stay parts; the template puts one placeholder where an image stands."""
    messages = []
    for m in record.messages:
        content: Any = m.content
        if not isinstance(content, str):
            content = [{"type": "text", "text": p.text} if isinstance(p, Text) else {"type": "image"} for p in content]
        reasoning = {"reasoning_content": m.reasoning} if m.reasoning is not None else {}
        messages.append({"role": m.role, "content": content, **reasoning})
    return messages
