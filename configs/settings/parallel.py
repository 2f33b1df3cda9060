"""How the ranks of a run share its work: the section `parallel` of a run file."""

from dataclasses import dataclass
from typing import Annotated

from lmms.configs.errors import ConfigError
from lmms.configs.ranges import Range
from lmms.configs.typed import check_fields
from lmms.configs.words import counted


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How ranks share the work. These settings do not change the results of a run."""

    sequence: Annotated[int, Range(1)] = 1
    """Ranks, best of one node, that share the tokens of the same packs: for packs of 64k tokens and more."""
    replicate: Annotated[int, Range(1)] = 1
    """Copies of the weights, each sharded over ranks / replicate ranks, best of one node: less traffic between nodes,
    more memory."""
    reshard: bool = True
    """Free a block's gathered weights after its forward and gather them again in backward; false: less traffic, but all
    gathered weights stay in memory at once."""
    offload: bool = False
    """On GPUs: keep weights, gradients and averages in main memory and update them there; a block's weights come to the
    GPU when the block runs."""

    def __post_init__(self) -> None:
        check_fields(self, "parallel")


def check_ranks(sequence: int, replicate: int, ranks: int) -> None:
    """ConfigError unless the ranks can be put into groups of `sequence`, and into `replicate` groups."""
    for name, value in (("sequence", sequence), ("replicate", replicate)):
        if ranks % value:
            raise ConfigError(
                f"parallel.{name} is {value}, but there {'is' if ranks == 1 else 'are'} {counted(ranks, 'rank')}, not a"
                " multiple of it; start"
                f" {-(-ranks // value) * value} ranks, or set parallel.{name} to one of {divisors(ranks)}"
            )


def check_offload(offload: bool, device: str) -> None:
    """ConfigError for offload on a device without separate memory."""
    if offload and device == "cpu":
        raise ConfigError(
            "parallel.offload is true, but the device is the CPU, whose weights are in main memory anyway; it is for"
            " GPUs: set it to false"
        )


def check_sequence_heads(sequence: int, heads: int) -> None:
    """ConfigError unless each of `sequence` ranks can get the same number of a model's attention heads."""
    if heads % sequence:
        raise ConfigError(
            f"parallel.sequence is {sequence}, but the model has {heads} attention heads, not a multiple of it; set"
            f" parallel.sequence to one of {divisors(heads)}"
        )


def divisors(number: int) -> list[int]:
    """Divisors of a number in ascending order, with 1 and the number itself."""
    return [i for i in range(1, number + 1) if number % i == 0]
