"""The examples of every form."""

from collections.abc import Mapping

from lmms.configs.settings.sources import FormName
from tests.kit.forms import (
    alpaca,
    anthropic,
    documents,
    llamafactory,
    llava,
    lmms_engine,
    objects,
    openai,
    sharegpt,
    swift,
    trl,
    veomni,
)
from tests.kit.forms.turns import Examples

EXAMPLES: Mapping[FormName, Examples] = {
    "sharegpt": sharegpt.EXAMPLES,
    "llava": llava.EXAMPLES,
    "swift": swift.EXAMPLES,
    "alpaca": alpaca.EXAMPLES,
    "trl": trl.EXAMPLES,
    "veomni": veomni.EXAMPLES,
    "lmms_engine": lmms_engine.EXAMPLES,
    "anthropic": anthropic.EXAMPLES,
    "llamafactory": llamafactory.EXAMPLES,
    "openai": openai.EXAMPLES,
    "objects": objects.EXAMPLES,
    "text": documents.TEXTS,
    "interleaved": documents.INTERLEAVED,
}
ROWS = [(form, record, expected) for form, examples in EXAMPLES.items() for record, expected in examples]
