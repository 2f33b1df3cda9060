"""One of several texts as the first question or the system prompt."""

from collections.abc import Sequence

from lmms.configs.settings.transforms import Prompts
from lmms.prep.records.record import Record
from lmms.prep.transforms.transform import Context
from lmms.prep.transforms.turns import with_question, with_system


def apply(record: Record, settings: Prompts, context: Context) -> Sequence[Record]:
    """The record with a drawn text."""
    text = settings.choices[context.draws.choice("prompt", len(settings.choices))]
    return [with_system(record, text) if settings.turn == "system" else with_question(record, text)]
