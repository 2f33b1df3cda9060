"""Plain text: {text: a document}, for continued pretraining. Another column is named by `fields: {text: body}`."""

from collections.abc import Mapping
from typing import Any

from lmms.prep.records.normal.form import Form, Normal, Roles
from lmms.prep.records.normal.turns import missing


def _read(record: Mapping[str, Any], _roles: Roles) -> Normal:
    if "text" not in record:
        raise missing(record, "`text`")
    return Normal(record, document="text")


def _fits(record: Mapping[str, Any]) -> bool:
    return "text" in record and "messages" not in record


FORM = Form(("text",), _fits, _read)
