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
from lmms.prep.records.media.names import NAMES_OF_MEDIA
from lmms.prep.records.normal.fields import columns_of, pick_fields
from lmms.prep.records.normal.form import Form, Normal
from lmms.prep.records.normal.system_column import SYSTEM_COLUMNS, with_system_column
from lmms.prep.records.normal.turns import MEDIA_COLUMNS, refuse_preferences

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
DOCUMENT_FORMS: tuple[FormName, ...] = ("text", "interleaved")
"""Forms of records without turns. A record of `trl` may have turns or none."""
PARSED_COLUMNS = (
    "images",
    "image",
    "videos",
    "audios",
    "tools",
    "functions",
    "weight",
    "chat_template_kwargs",
    *SYSTEM_COLUMNS,
)
"""Columns that every form leaves to the parsers, beside the turns or the text of its own."""


def normal_form(raw: Any, reading: Reading) -> Normal:
    """A raw record in the form that parse_record reads, from the form of its source. Raises Reject."""
    if not isinstance(raw, Mapping):
        return Normal(raw)
    picked = pick_fields(raw, reading.fields) if reading.fields else raw
    refuse_preferences(picked)
    return with_system_column(FORMS[reading.form or "openai"].read(picked, reading.roles), reading.roles)


def form_columns(form: FormName | None) -> tuple[str, ...]:
    """The columns of a form, or of all forms as long as none is decided: what the setting `fields` can name."""
    forms = [FORMS[form]] if form else FORMS.values()
    return tuple(dict.fromkeys((*(column for each in forms for column in each.columns), *PARSED_COLUMNS)))


def columns_read(reading: Reading) -> tuple[str, ...]:
    """The columns of a table that a source reads: those of its form, or of all forms as long as none is decided.

    Columns that may hold media are always among them: media that no part takes are a rejection.
    """
    columns = (*form_columns(reading.form), *columns_of(reading.fields), *transform_columns(reading.transforms))
    return tuple(dict.fromkeys((*columns, *sorted(NAMES_OF_MEDIA))))


def find_form(records: Sequence[Mapping[str, Any]]) -> FormName | None:
    """The form of a source, from its first records; None if no form fits half of them.

    A form is taken if one record at least has what only that form has: a record without pictures can be of many forms.
    A column that is null counts as absent, but for one of pictures: its name says that the source has pictures.
    """
    records = [
        {name: value for name, value in record.items() if value is not None or name in MEDIA_COLUMNS}
        for record in records
    ]
    for name, form in FORMS.items():
        if 2 * sum(map(form.fits, records)) >= len(records) > 0 and any(map(form.is_marked, records)):
            return name
    return None
