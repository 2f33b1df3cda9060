"""OpenAI chat, the normal form itself: {messages: [{role, content, ...}], tools, images, weight, ...}."""

from collections.abc import Mapping
from typing import Any

from lmms.prep.records.normal.form import Form, Normal, Roles


def _fits(record: Mapping[str, Any]) -> bool:
    return any(name in record for name in ("messages", "text", "prompt"))


def _marks(record: Mapping[str, Any]) -> bool:
    return "messages" in record


def _read(record: Mapping[str, Any], _roles: Roles) -> Normal:
    return Normal(record)


FORM = Form(("messages",), _fits, _read, _marks)
