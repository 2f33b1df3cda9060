"""A raw row -> a typed Record, by way of the form of its source."""

import re
from dataclasses import replace
from typing import Any

from lmms.configs.settings.sources import DEFAULT_READING, Reading
from lmms.prep.records.document import Document, parse_document
from lmms.prep.records.forms import normal_form
from lmms.prep.records.normal.fields import original_place
from lmms.prep.records.normal.form import Normal
from lmms.prep.records.parts import MEDIA_PARTS
from lmms.prep.records.plain import parse_plain
from lmms.prep.records.record import Message, Record, parse_record
from lmms.prep.records.system import with_system, without_system
from lmms.prep.records.weights import scaled_weight
from lmms.prep.reject import Reject


def read_record(raw: Any, reading: Reading = DEFAULT_READING) -> Record | Document:
    """A conversation or a document from the value of a JSON line or the row of a table.

    Raises Reject, with the place in the raw record.
    """
    try:
        normal = normal_form(raw, reading)
        record = _parsed(normal, reading)
    except Reject as reject:
        if not reading.fields:
            raise
        raise Reject(reject.reason, reject.message, original_place(reject.place, reading.fields)) from None
    if reading.weight != 1:
        record = replace(record, weight=scaled_weight(record.weight, reading.weight))
    if isinstance(record, Document):
        return without_system(replace(record, place=original_place(record.place, reading.fields)), reading)
    if normal.places or reading.fields:
        record = replace(_placed(record, normal), place=original_place(_column(normal), reading.fields))
    return with_system(record, reading)


def _parsed(normal: Normal, reading: Reading) -> Record | Document:
    try:
        if normal.document:
            return parse_document(normal.record, normal.document)
        return parse_plain(normal.record, reading) or parse_record(normal.record, reading)
    except Reject as reject:
        raise normal.located(reject) from None


def _column(normal: Normal) -> str:
    """The column of all turns but the system prompt, empty if there are several."""
    columns = {re.split(r"\W", place, maxsplit=1)[0] for place in normal.places or ("messages",)} - {"system"}
    return columns.pop() if len(columns) == 1 else ""


def _placed(record: Record, normal: Normal) -> Record:
    """The record with the places that its pictures have in the raw record: a later fault names them."""
    return replace(record, messages=tuple(_placed_message(message, normal) for message in record.messages))


def _placed_message(message: Message, normal: Normal) -> Message:
    if isinstance(message.content, str):
        return message
    parts = (replace(p, place=normal.original(p.place)) if isinstance(p, MEDIA_PARTS) else p for p in message.content)
    return replace(message, content=tuple(parts))
