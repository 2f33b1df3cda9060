"""The setting `system`: the system prompt that a source gives its conversations."""

from dataclasses import replace

from lmms.configs.settings.sources import Reading
from lmms.prep.records.document import Document
from lmms.prep.records.record import Message, Record


def with_system(record: Record, reading: Reading) -> Record:
    """The conversation with the system prompt of its source as its first turn, where `system_mode` says so."""
    has_system = any(message.role == "system" for message in record.messages)
    if reading.system is None or reading.system_mode == "keep" or (has_system and reading.system_mode == "add"):
        return record
    weight = 1.0 if reading.targets == "all" else 0.0
    turn = Message(role="system", content=reading.system, weight=weight, reasoning=None)
    kept = tuple(message for message in record.messages if message.role != "system")
    lost = len(record.media) - sum(len(message.media) for message in kept)
    unused = (*record.unused, *(["images of a replaced system turn"] if lost else []))
    return replace(record, messages=(turn, *kept), unused=unused)


def without_system(document: Document, reading: Reading) -> Document:
    """The document, with a note where its source has a system prompt: plain text has no turn for the prompt."""
    if reading.system is None or reading.system_mode == "keep":
        return document
    return replace(document, unused=(*document.unused, "setting system, in plain text"))
