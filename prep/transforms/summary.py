"""A column of the record as its answer, in a share of the records: dense captions and summaries in one set."""

from collections.abc import Sequence

from lmms.configs.settings.transforms import Summary
from lmms.prep.records.record import Record
from lmms.prep.reject import Reject
from lmms.prep.transforms.transform import Context
from lmms.prep.transforms.turns import with_answer, with_question


def apply(record: Record, settings: Summary, context: Context) -> Sequence[Record]:
    """The record, or the record with its summary as the answer. Raises Reject for a record without a summary."""
    text = record.columns.get(settings.column)
    if settings.ratio and (not isinstance(text, str) or not text):
        raise Reject("missing_column", "no text in the column that `summary` reads", settings.column)
    if context.draws.uniform("target") >= settings.ratio:
        return [record]
    assert isinstance(text, str)
    record = with_answer(record, text)
    if settings.prompts:
        record = with_question(record, settings.prompts[context.draws.choice("prompt", len(settings.prompts))])
    return [record]
