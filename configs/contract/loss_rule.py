"""The rules by which a target token counts in the loss, by name. loss_weight.py computes them, with numpy."""

from collections.abc import Mapping
from typing import Literal

LossWeight = Literal["token", "conversation", "sqrt"]
"""With s the weight of the record, m of the message, and M the sum of m over the conversation's target tokens: a token
counts s m; s m / M, so that its conversation counts s; or s m / sqrt(M), so that it counts s sqrt(M)."""

TOTALS: Mapping[LossWeight, str] = {
    "token": "target_weight",
    "conversation": "conversation_weight",
    "sqrt": "sqrt_weight",
}
"""The column of packs.parquet that holds the sum over a pack's target tokens: its part of a step's denominator."""
