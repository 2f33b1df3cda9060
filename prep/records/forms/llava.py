"""LLaVA: ShareGPT with pictures: {conversations: [{from, value: "<image>\\nWhat?"}], image: a.jpg}.

Each tag takes the next entry of `image` or `images`; the text around a tag stays as written, line feeds too.
"""

from collections.abc import Mapping
from typing import Any

from lmms.prep.records.forms.sharegpt import LISTS, has_conversation, read_conversation, system_used
from lmms.prep.records.normal.form import Form, Normal, Roles, renamed
from lmms.prep.records.normal.turns import MEDIA_COLUMNS, check_counts, media, with_places, with_video_places


def _read(record: Mapping[str, Any], roles: Roles) -> Normal:
    messages, places = read_conversation(record, roles)
    for message in messages:
        if isinstance(message["content"], str):
            message["content"] = with_places(message["content"])
    entries = media(record)
    messages = [with_video_places(message, entries) for message in messages]
    check_counts(messages, entries)
    read = (*LISTS, *system_used(places), *MEDIA_COLUMNS)
    return Normal(renamed(record, read, messages=messages, **entries), places)


def _marks(record: Mapping[str, Any]) -> bool:
    return has_conversation(record) and any(name in record for name in MEDIA_COLUMNS)


FORM = Form((*LISTS, *MEDIA_COLUMNS), has_conversation, _read, _marks)
