"""Texts and pictures without roles, as OBELICS has them: {texts: ["a", null], images: [null, "b.jpg"]}."""

from collections.abc import Mapping
from typing import Any

from lmms.prep.records.normal.form import Form, Normal, Roles
from lmms.prep.records.normal.turns import missing


def _read(record: Mapping[str, Any], _roles: Roles) -> Normal:
    if record.get("texts") is None:
        raise missing(record, "`texts`")
    return Normal(record, document="interleaved")


def _fits(record: Mapping[str, Any]) -> bool:
    return "texts" in record and "messages" not in record


FORM = Form(("texts",), _fits, _read)
