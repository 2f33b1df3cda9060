"""What a dry run knows of a run: its memory by component, its length, the cards that it fits."""

from dataclasses import dataclass

from lmms.train.plan.advice import Proposal
from lmms.train.plan.cards import Card
from lmms.train.plan.estimate import largest

MFU_SUPPOSED = (0.3, 0.5)
"""Share of a card's data-sheet peak that training may reach. It is supposed: a run tells its real share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Heaviest:
    """The largest numbers in the passes that were traced: those of the packs with most of each."""

    tokens: int
    patches: int
    images: int
    sounds: int
    positions: int
    """Positions of sounds in the audio tower."""
    target_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """How long the run is. Operations are strict, see model_cost."""

    steps: int
    """Steps that are still to be taken."""
    tokens_a_step: float
    steps_an_epoch: float
    """An epoch is one pass over the shards, or over the mixture."""
    tokens_an_epoch: float
    flops_a_step: float
    flops_an_epoch: float
    tokens_per_s: float | None
    """Tokens of all ranks, measured by the run in `output`; None where no run was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """All that `lmms train --dry-run` shows."""

    model: str
    parameters: dict[str, int]
    """Part -> its parameters."""
    trained: dict[str, int]
    precision: str
    optimizer: str
    """optim.name."""
    recompute: str
    ranks: int
    global_packs: int
    micro_packs: int
    passes: int
    """Forward and backward passes of each rank in a step."""
    shards: int
    packs: int
    resumes: str | None
    """The checkpoint that the run would go on from."""
    heaviest: Heaviest
    memory: list[dict[str, int]]
    """Bytes of each rank by component, see COMPONENTS."""
    staged: int
    """Bytes of main memory that a checkpoint takes on a rank until it is written."""
    cards: list[Card]
    proposals: list[Proposal]
    """Changes that would need less memory; empty where every card has enough."""
    length: Length
    waiting: float
    """Time that ranks lose by waiting for one another, as a share of the time without waiting."""
    remarks: list[str]

    @property
    def total(self) -> int:
        """Bytes of the rank that needs most."""
        return largest(self.memory)

    @property
    def largest(self) -> str:
        """The component that needs most, on that rank."""
        fullest = max(self.memory, key=lambda components: sum(components.values()))
        return max(fullest, key=lambda name: fullest[name])

    def hours(self, card: Card) -> tuple[float, float] | None:
        """Hours of the whole run at the higher and the lower of MFU_SUPPOSED; None for a card of unknown speed."""
        if card.peak_flops is None:
            return None
        slowest, fastest = (
            self.length.steps * self.length.flops_a_step / (self.ranks * card.peak_flops * mfu) / 3600
            for mfu in MFU_SUPPOSED
        )
        return fastest, slowest
