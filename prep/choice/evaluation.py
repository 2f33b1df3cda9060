"""The setting `eval_share`: which records are for evaluation, by a hash of what they say or of a column's value.

Neither seed, model nor length of a pack matters, so all builds of the same records hold out the same records, and a
larger share holds out more of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import xxhash

from lmms.configs.settings.sources import Choice
from lmms.configs.words import type_name
from lmms.prep.records.document import Document, Passage
from lmms.prep.records.normal.fields import value_at
from lmms.prep.records.parts import Audio, Image, Video
from lmms.prep.records.record import Message, Record
from lmms.prep.reject import Reject


def is_for_evaluation(choice: Choice, raw: Any, record: Record | Document) -> bool:
    """Whether a record is held out for evaluation. raw: the value that it was read from. Raises Reject."""
    if not choice.eval_share:
        return False
    digest = xxhash.xxh3_64_intdigest(_group(raw, choice.eval_by)) if choice.eval_by else content_hash(record)
    return digest < choice.eval_share * 2**64


def content_hash(record: Record | Document) -> int:
    """A 64-bit hash of the turns but those of the system: roles, texts, calls, and pictures by their names or bytes.

    Two records that differ in weights, ids, tools or the system prompt have the same.
    """
    digest = xxhash.xxh3_64()
    parts = record.parts if isinstance(record, Document) else record.messages
    for part in parts:
        for kind, value in _pieces(part):
            data = value if isinstance(value, bytes) else value.encode()
            digest.update(f"{kind} {len(data)} ".encode())
            digest.update(data)
    return digest.intdigest()


def _pieces(part: Message | Passage | Image) -> Iterator[tuple[str, str | bytes]]:
    if isinstance(part, Passage):
        yield "text", part.text
    elif isinstance(part, Image):
        yield "image", part.ref.value
    elif part.role != "system":
        yield part.role, part.text
        for medium in part.media:
            if isinstance(medium, Video):
                yield from (("video", ref.value) for ref in medium.files.refs)
            else:
                yield "audio" if isinstance(medium, Audio) else "image", medium.ref.value
        for call in part.calls:
            yield "call", f"{call.name} {dict(call.arguments)}"


def _group(raw: Any, column: str) -> bytes:
    value = value_at(raw, column) if isinstance(raw, Mapping) else None
    if not isinstance(value, str | int | float):
        given = "is not there" if value is None else f"is {type_name(value)}"
        message = f"`{column}` {given}; eval_by needs a text or a number, or nobody knows where the record belongs"
        raise Reject("missing_group", message, column)
    return str(value).encode()
