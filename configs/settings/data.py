"""Which shards a run reads, in which order, and how."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lmms.configs.errors import ConfigError
from lmms.configs.ranges import MOST_SECONDS, Range
from lmms.configs.typed import check_fields

Packs = Annotated[int, Range(1, 2**20)]
"""Packs in one step, group or pass."""
Amount = Annotated[float, Range(above=0)]


OnBadMedia = Literal["stop", "mask"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareConfig:
    """One set of shards of a mixture, and its amount: weight, tokens or epochs, the same kind for all sets."""

    shards: str
    """Folder or URL of one shard folder."""
    weight: Amount | None = None
    """Share of the tokens, relative to the other sets' weights."""
    tokens: Amount | None = None
    """Tokens of this set in each pass over the mixture."""
    epochs: Amount | None = None
    """Passes over this set in each pass over the mixture."""

    def __post_init__(self) -> None:
        check_fields(self, "data.mixture")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which shards are read, in which order, and how."""

    shards: str | None = None
    """Folder that `lmms prep build-shards` wrote, or its URL: s3, gs, az, http(s), sftp, hf, oci, dbfs."""
    mixture: tuple[ShareConfig, ...] = ()
    """Several sets of shards instead of one: a list of {shards, weight | tokens | epochs}."""
    global_packs: Packs = 8
    """Packs of an optimizer step, over all ranks and micro-steps; need not be a multiple of the ranks."""
    group_packs: Packs = 1
    """Neighbours in the order with about equal cost: the number of ranks, if packs differ much; see `inspect order`."""
    micro_packs: Packs = 1
    """Packs of one forward pass on one rank; the passes of a step are accumulated."""
    workers: Annotated[int, Range(0, 1024)] = 2
    """Loader processes a rank; 0 loads in the training process. Any number gives the same order."""
    on_bad_media: OnBadMedia = "stop"
    """An image that fails at training: stop with its record's name, or train its conversation with weight 0."""
    cache: str | None = None
    """Folder on this node for shards read from a URL; runs may share it. Default: packs are read from the URL."""
    cache_gb: Annotated[float, Range(0)] = 200.0
    """Size of the cache, in 1e9 bytes; shards whose next use is furthest go first."""
    retry_s: Annotated[float, Range(0, MOST_SECONDS)] = 120.0
    """Seconds for which a failing store is asked again before the run stops."""

    def __post_init__(self) -> None:
        check_fields(self, "data")
        _check_shares(self)

    @property
    def shares(self) -> tuple[ShareConfig, ...]:
        """The sets of a run: the sets of its mixture, or its only set."""
        return self.mixture if self.shards is None else (ShareConfig(shards=self.shards, weight=1.0),)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Shards that are not trained on, and how often their loss is taken."""

    shards: str
    """Folder or URL of a shard folder; all of its packs are read each time."""
    every_steps: Annotated[int, Range(1)] = 500
    """Optimizer steps between evaluations; the last step is always evaluated."""

    def __post_init__(self) -> None:
        check_fields(self, "eval")


def _check_shares(data: DataConfig) -> None:
    if (data.shards is None) == (not data.mixture):
        raise ConfigError("set one of data.shards (one set) and data.mixture (several)")
    kinds = set()
    for i, share in enumerate(data.mixture):
        amounts = {kind: getattr(share, kind) for kind in ("weight", "tokens", "epochs")}
        given = [kind for kind, amount in amounts.items() if amount is not None]
        if len(given) != 1:
            raise ConfigError(f"data.mixture[{i}] has {given or 'no amount'}, expected one of {list(amounts)}")
        kinds.add(given[0])
    if len(kinds) > 1:
        raise ConfigError(f"data.mixture measures by {sorted(kinds)}, expected one of them for all sets")
