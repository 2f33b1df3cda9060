"""The forms in which records come: one small file each, named by the setting `form` or found from the first records."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmms.configs.settings.sources import FormName, Reading
from lmms.configs.settings.transforms import columns_of as transform_columns
from lmms.prep.records.forms import (
    alpaca,
    anthropic,
    interleaved,
    llamafactory,
    llava,
    lmms_engine,
    objects,
    openai,
    sharegpt,
    swift,
    text,
    trl,
    veomni,
)
from lmms.prep.records.forms.fields import columns_of, pick_fields
from lmms.prep.records.forms.form import Form, Normal
from lmms.prep.records.pictures import NAMES_OF_MEDIA

FORMS: Mapping[FormName, Form] = {
    "alpaca": alpaca.FORM,
    "swift": swift.FORM,
    "lmms_engine": lmms_engine.FORM,
    "anthropic": anthropic.FORM,
    "llamafactory": llamafactory.FORM,
    "veomni": veomni.FORM,
    "objects": objects.FORM,
    "llava": llava.FORM,
    "sharegpt": sharegpt.FORM,
    "openai": openai.FORM,
    "trl": trl.FORM,
    "text": text.FORM,
    "interleaved": interleaved.FORM,
}
"""Name -> form; where several fit the first records of a source, the first of them is taken."""
ALL_COLUMNS = tuple(dict.fromkeys(column for form in FORMS.values() for column in form.columns))


def normal_form(raw: Any, reading: Reading) -> Normal:
    """A raw record in the form that parse_record reads, from the form of its source. Raises Reject."""
    if not isinstance(raw, Mapping):
        return Normal(raw)
    picked = pick_fields(raw, reading.fields) if reading.fields else raw
    return FORMS[reading.form or "openai"].read(picked, reading.roles)


def columns_read(reading: Reading) -> tuple[str, ...]:
    """The columns of a table that a source reads: those of its form, or of all forms as long as none is decided.

    Columns that may hold media are always among them: media that no part takes are a rejection.
    """
    columns = FORMS[reading.form].columns if reading.form else ALL_COLUMNS
    return tuple(
        dict.fromkeys(
            (*columns, *columns_of(reading.fields), *transform_columns(reading.transforms), *sorted(NAMES_OF_MEDIA))
        )
    )


def find_form(records: Sequence[Mapping[str, Any]]) -> FormName | None:
    """The form of a source, from its first records; None if no form fits half of them.

    A form is taken if one record at least has what only that form has: a record without pictures can be of many forms.
    """
    for name, form in FORMS.items():
        if 2 * sum(map(form.fits, records)) >= len(records) > 0 and any(map(form.is_marked, records)):
            return name
    return None
