"""Qwen2.5 and Qwen3: content is a string, e.g. {"role": "user", "content": "Hello"}."""

from typing import Any

from lmms.prep.records.record import Record
from lmms.prep.reject import Reject
from lmms.prep.render.families.family import Family, other_keys

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
"""ChatML, which all Qwen families use."""
TEXT_END = "<|endoftext|>"
"""The token between documents in Qwen's own pretraining."""


def template_messages(record: Record) -> list[dict[str, Any]]:
    """Text parts are joined as they are: these templates know strings only."""
    if record.media:
        message = "the record has images, videos or sounds, this model reads text only"
        raise Reject("images_unsupported", message, record.media[0].place)
    return [{"role": m.role, "content": m.text, **other_keys(m)} for m in record.messages]


FAMILY = Family(
    template_messages=template_messages,
    turn_start=TURN_START,
    turn_end=TURN_END,
    text_end=TEXT_END,
    plain_templates={
        "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f": "Qwen2.5",
        "a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8": "Qwen3",
    },
)
