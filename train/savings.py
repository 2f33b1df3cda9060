"""Settings that need less memory for the same training: what a dry run advises where a card is too small."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from lmms.configs.memory import MemoryConfig
from lmms.configs.train import TrainConfig


def savings(config: TrainConfig, *, keeps_vision: bool, offload_gb: int) -> list[tuple[str, TrainConfig]]:
    """(change, the settings with it), those first that cost least time.

    To shard what is held whole costs traffic, a pass over fewer packs next to nothing. To recompute elementwise costs
    what reading its inputs costs, the vision tower in full one forward pass of it, everything in full a third of the
    step. What blocks keep then is little enough to go to main memory unnoticed. Last, the strongest of these with the
    changes of other sections.
    keeps_vision: whether the vision tower keeps anything. offload_gb: GB of main memory that take all that blocks keep
    with `in_full`.
    """
    now = config.memory
    ladder = [replace(now, recompute="elementwise")] if now.recompute == "none" else [now]
    if keeps_vision:
        ladder.append(replace(ladder[-1], recompute_vision="full"))
    full = in_full(now)
    ladder += [full, replace(full, offload_activations_gb=max(now.offload_activations_gb, float(offload_gb)))]
    # A setting that says the same in other words is no change.
    same = {now, replace(now, recompute_vision=now.vision)}
    changed = [replace(config, memory=memory) for memory in dict.fromkeys(ladder) if memory not in same]
    wanted = (("parallel", "reshard", True), ("parallel", "replicate", 1), ("data", "micro_packs", 1))
    others = [(section, name, value) for section, name, value in wanted if _value(config, section, name) != value]
    apart, together = [_with(config, *other) for other in others], changed[-2:] or [config]
    for other in others:
        together = [_with(one, *other) for one in together]
    # Of one change alone there is nothing together.
    found = [*apart, *changed, *(together if others and len(others) + len(changed) > 1 else ())]
    return [(_words(config, one), one) for one in found]


def in_full(memory: MemoryConfig) -> MemoryConfig:
    """Everything recomputed in full."""
    return replace(memory, recompute="full", recompute_vision=memory.recompute_vision and "full")


def _value(config: TrainConfig, section: str, name: str) -> Any:
    return getattr(getattr(config, section), name)


def _with(config: TrainConfig, section: str, name: str, value: Any) -> TrainConfig:
    changes: dict[str, Any] = {section: replace(getattr(config, section), **{name: value})}
    return replace(config, **changes)


def _words(before: TrainConfig, after: TrainConfig) -> str:
    """Each key that differs, with its new value as a run file has it."""
    was = dict(_settings(asdict(before), ""))
    return " and ".join(f"{key}: {value}" for key, value in _settings(asdict(after), "") if was[key] != value)


def _settings(section: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    """Dotted key and value of every setting."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{above}{name}.")
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            yield f"{above}{name}", text.lower() if isinstance(value, bool) else text
