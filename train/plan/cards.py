"""The memory and the speed of cards."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lmms.configs.errors import ConfigError

GIB = 2**30

MEMORY: Mapping[str, int] = {
    "RTX 4090 24GB": int(23.5 * GIB),
    "A100 40GB": int(39.3 * GIB),
    "L40S 48GB": int(44.3 * GIB),
    "A100 80GB": int(79.1 * GIB),
    "H100 80GB": int(79.1 * GIB),
    "H100 NVL 94GB": int(93.0 * GIB),
    "H200 141GB": int(139.0 * GIB),
    "B200 180GB": int(178.0 * GIB),
}
"""Name -> bytes that torch finds on such a card, rounded down: less than its label says. Taken from reports of users;
no value was measured here, and A100 80GB and B200 have no report yet. On a machine with a GPU, the GPU is asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A card that a run is meant for."""

    name: str
    memory: int
    """Bytes."""
    peak_flops: float | None
    """Dense bf16 operations a second by its data sheet; None for a card that is not in PEAK_FLOPS."""


def find_card(name: str) -> Card:
    """The card of this name in MEMORY, upper or lower case. ConfigError for an unknown name, with the known names."""
    for known, memory in MEMORY.items():
        if known.lower() == name.strip().lower():
            return Card(name=known, memory=memory, peak_flops=peak_flops(known))
    raise ConfigError(f"--card is {name!r}, expected one of: {', '.join(MEMORY)}")


def cards_to_show(name: str | None) -> list[Card]:
    """The card with this name; without a name the card of this machine, or else every card in MEMORY."""
    if name is not None:
        return [find_card(name)]
    if torch.cuda.is_available():
        here = torch.cuda.get_device_properties(torch.cuda.current_device())
        return [Card(name=here.name, memory=here.total_memory, peak_flops=peak_flops(here.name))]
    return [find_card(known) for known in MEMORY]


PEAK_FLOPS: Mapping[str, float] = {
    r"\bH[18]00 PCIe": 756e12,
    r"\bH[12]00 NVL": 835e12,
    r"\bG?H[128]00\b": 989e12,
    r"\bH20\b": 148e12,
    r"\bA[18]00\b": 312e12,
    r"\bL40S\b": 362e12,
    r"\bRTX 4090\b": 165e12,
    r"\bGB200\b": 2500e12,
    r"\bB200\b": 2250e12,
}
"""Pattern of a device's name -> dense bf16 operations a second by its data sheet; the first match holds."""


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 operations a second of a device by its data sheet; None for a device that is not in the table."""
    return next((peak for pattern, peak in PEAK_FLOPS.items() if re.search(pattern, device_name)), None)


def ranks_peak(device: torch.device, ranks: int) -> float | None:
    """peak_flops of so many devices of this kind; None for a CPU."""
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if peak is None else ranks * peak
