"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL, and models that hear: content is a string or parts, e.g.

{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from lmms.prep.records.parts import Part, Text
from lmms.prep.records.record import Record
from lmms.prep.render.families.family import Family, other_keys
from lmms.prep.render.families.text import TEXT_END, TURN_END, TURN_START
from lmms.prep.render.turns import media_kind


def template_messages(record: Record) -> list[dict[str, Any]]:
    """Parts stay parts; the template puts one placeholder where an image, a video or a sound stands.

    Neighbouring texts become one part, as in the rendering: a search for special-token text in a part must see the
    whole text.
    """
    messages = []
    for m in record.messages:
        content: Any = m.content
        if not isinstance(content, str):
            content = [part for is_text, run in groupby(content, _is_text) for part in _template_parts(is_text, run)]
        messages.append({"role": m.role, "content": content, **other_keys(m)})
    return messages


def _is_text(part: Part) -> bool:
    return isinstance(part, Text)


def _template_parts(is_text: bool, run: Iterable[Part]) -> Iterator[dict[str, Any]]:
    if is_text:
        yield {"type": "text", "text": "".join(part.text for part in run if isinstance(part, Text))}
    else:
        yield from ({"type": media_kind(part)} for part in run)


def rows_together(seconds: Sequence[float], video: str = "<|video_pad|>") -> list[str]:
    """The rows of a video, one behind the other. video: their placeholder."""
    return ["", *(piece for _ in seconds for piece in (video, ""))]


def rows_with_times(seconds: Sequence[float]) -> list[str]:
    """Each row of a video behind its time, as a picture of its own: replace_video_token of transformers 5's
    processing_qwen3_vl.py. The template's tokens around the video stay, as they do there from 5.10 on."""
    pieces = [""]
    for time in seconds:
        pieces[-1] += f"<{time:.1f} seconds>"
        pieces += [_BEFORE, "", _VIDEO, "", _BEHIND, ""]
    return pieces


_VIDEO, _BEFORE, _BEHIND = "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"


FAMILY = Family(
    template_messages=template_messages,
    turn_start=TURN_START,
    turn_end=TURN_END,
    text_end=TEXT_END,
    plain_templates={
        "a0bc6f6fc7a29a80017a433e8f03a1cc1236e838a944a2d034295a60c4f2fddb": "Qwen2-VL, Qwen2.5-VL",
        "3636d0f0bd6bef02654cdffdc447b79cb2cef8ab02cc75267345946291a489e4": "Qwen3-VL",
    },
    image_around=(_BEFORE, _BEHIND),
    clip=rows_together,
)
