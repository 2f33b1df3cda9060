"""How a family's chat template wants its messages. One small file a kind of model; this table names them."""

from collections.abc import Callable, Mapping
from typing import Any

from lmms.configs.contract.model_folder import TEXT_FAMILIES, VISION_FAMILIES
from lmms.prep.records.record import Record
from lmms.prep.render.families import text, vision

TEMPLATE_MESSAGES: Mapping[str, Callable[[Record], list[dict[str, Any]]]] = {
    **dict.fromkeys(TEXT_FAMILIES, text.template_messages),
    **dict.fromkeys(VISION_FAMILIES, vision.template_messages),
}
"""family -> record to what its chat template takes as `messages`."""
