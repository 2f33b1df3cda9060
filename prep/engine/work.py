"""What the chunks of a build took, for its report alone: nothing of it decides what is written."""

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Work:
    """What some chunks took."""

    chunks: int = 0
    kept: int = 0
    """Chunks that an earlier build had kept."""
    records_s: float = 0.0
    """Seconds of worker processes in which rows were parsed, pictures read and texts laid out."""
    tokens_s: float = 0.0
    """The same in which texts were tokenized."""
    samples_s: float = 0.0
    """The same in which samples were made and spooled."""
    by_outline: int = 0
    """Conversations that were laid out without running the chat template."""
    by_template: int = 0
    """Conversations for which the chat template ran."""
    tokenizers: frozenset[str] = frozenset()
    """The tokenizers that were used, and why."""

    def add(self, other: "Work") -> None:
        """Add what other chunks took."""
        for field in fields(Work):
            mine, more = getattr(self, field.name), getattr(other, field.name)
            setattr(self, field.name, mine | more if isinstance(mine, frozenset) else mine + more)
