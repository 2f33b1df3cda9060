"""A document: text, and pictures between texts, without roles. For continued pretraining and plain completions.

{text}                    all of it is learned
{prompt, completion}      strings; the completion is learned
{texts, images}           lists of one length; at each place a text or a picture, the other is null
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmms.prep.records.absent import is_absent, is_null_image
from lmms.prep.records.media.pictures import image_ref
from lmms.prep.records.media.unread import NONE_TAKEN, check_all_read, check_nested
from lmms.prep.records.parts import Image
from lmms.prep.records.strict_json import kind_of
from lmms.prep.records.weights import is_record_flag, record_weight
from lmms.prep.reject import Reject

DocumentKind = Literal["text", "completion", "interleaved"]
_COLUMNS: Mapping[DocumentKind, tuple[str, ...]] = {
    "text": ("text",),
    "completion": ("prompt", "completion"),
    "interleaved": ("texts", "images"),
}


@dataclass(frozen=True, slots=True)
class Passage:
    """A text of a document."""

    text: str
    is_learned: bool


@dataclass(frozen=True, slots=True)
class Document:
    """Texts and pictures in order, checked and typed."""

    parts: tuple[Passage | Image, ...]
    weight: float
    """Weight of the whole document in the loss, above 0."""
    unused: tuple[str, ...]
    """Columns that hold something and are not used."""
    place: str
    """The column with most of the text, for a fault of the whole document."""

    @property
    def images(self) -> tuple[Image, ...]:
        """The pictures, in order."""
        return tuple(part for part in self.parts if isinstance(part, Image))

    @property
    def may_split(self) -> bool:
        """Whether the document can be cut in pieces that all have text to learn from."""
        return all(part.is_learned for part in self.parts if isinstance(part, Passage))


def parse_document(raw: Mapping[str, Any], kind: DocumentKind) -> Document:
    """A document from the value of a JSON line or the row of a table. Raises Reject."""
    weight = record_weight(raw)
    columns = _COLUMNS[kind]
    parts: tuple[Passage | Image, ...]
    if kind == "interleaved":
        parts = _interleaved(raw)
    elif kind == "text":
        parts = (Passage(_string(raw, "text"), is_learned=True),)
    else:
        prompt, completion = _string(raw, "prompt"), _string(raw, "completion")
        parts = (Passage(prompt, is_learned=False), Passage(completion, is_learned=True))
    if not any(part.text for part in parts if isinstance(part, Passage) and part.is_learned):
        raise Reject("empty_text", "the text to learn from is empty", columns[-1] if kind != "interleaved" else "texts")
    used = (*columns, "weight", "id")
    check_all_read(raw, columns, NONE_TAKEN)
    check_nested(raw, used, NONE_TAKEN)
    unused = (
        f"column {key}"
        for key, value in raw.items()
        if not (key in used or is_absent(value) or is_record_flag(key, value))
    )
    place = max(columns, key=lambda name: len(raw[name])) if kind == "completion" else columns[0]
    return Document(parts, weight, tuple(unused), place)


def _string(raw: Mapping[str, Any], column: str) -> str:
    value = raw.get(column)
    if not isinstance(value, str):
        raise Reject("bad_text", f"`{column}` is {kind_of(value)}, expected a string", column)
    return value


def _interleaved(raw: Mapping[str, Any]) -> tuple[Passage | Image, ...]:
    texts, images = raw["texts"], raw.get("images") or []
    for column, value in (("texts", texts), ("images", images)):
        if not isinstance(value, list):
            raise Reject("bad_text", f"`{column}` is {kind_of(value)}, expected a list", column)
    if images and len(images) != len(texts):
        message = f"{len(texts)} texts and {len(images)} images; expected a text or an image at each place"
        raise Reject("count_mismatch", message, "images")
    parts: list[Passage | Image] = []
    for i, text in enumerate(texts):
        image = None if not images or is_null_image(images[i]) else images[i]
        if (text is None) == (image is None):
            both = "neither a text nor an image" if text is None else "both a text and an image"
            raise Reject("count_mismatch", f"{both} at one place; expected one of them", f"texts[{i}]")
        if image is not None:
            parts.append(Image(image_ref(image, f"images[{i}]"), f"images[{i}]"))
        elif isinstance(text, str):
            parts.append(Passage(text, is_learned=True))
        else:
            raise Reject("bad_text", f"a text is {kind_of(text)}, expected a string", f"texts[{i}]")
    return tuple(parts)
