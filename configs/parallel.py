"""How the ranks of a run share its work: the section `parallel` of a run file."""

from dataclasses import dataclass

from lmms.configs.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How ranks share the work. Whatever is set, a run computes the same."""

    sequence: int = 1
    """Ranks, best of one node, that train on the same packs, each on a run of the tokens: for packs of 64k and more."""

    def __post_init__(self) -> None:
        if self.sequence < 1:
            raise ConfigError(f"parallel.sequence is {self.sequence}, expected at least 1")


def check_sequence_ranks(sequence: int, ranks: int) -> None:
    """ConfigError unless the ranks can be put into groups of `sequence`."""
    if ranks % sequence:
        raise ConfigError(
            f"parallel.sequence is {sequence}, but there are {ranks} ranks, not a multiple of it; start"
            f" {-(-ranks // sequence) * sequence} ranks, or set parallel.sequence to one of {divisors(ranks)}"
        )


def check_sequence_heads(sequence: int, heads: int) -> None:
    """ConfigError unless a model's attention heads can be dealt out to `sequence` ranks, as many to each."""
    if heads % sequence:
        raise ConfigError(
            f"parallel.sequence is {sequence}, but the model has {heads} attention heads, not a multiple of it; set"
            f" parallel.sequence to one of {divisors(heads)}"
        )


def divisors(number: int) -> list[int]:
    """In ascending order, 1 and the number itself included."""
    return [i for i in range(1, number + 1) if number % i == 0]
