"""Settings that need less memory for the same training: what a dry run advises where a card is too small."""

from dataclasses import replace

from lmms.configs.memory import MemoryConfig
from lmms.configs.train import TrainConfig


def savings(config: TrainConfig, *, keeps_vision: bool, offload_gb: int) -> list[tuple[str, TrainConfig]]:
    """(change, the settings with it), those first that cost least time.

    A pass over fewer packs costs next to nothing. To recompute elementwise costs what reading its inputs costs, the
    vision tower in full one forward pass of it, everything in full a third of the step. What blocks keep then is little
    enough to go to main memory unnoticed. Last, the strongest of these with fewer packs.
    keeps_vision: whether the vision tower keeps anything. offload_gb: GiB of main memory that take all that blocks keep
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
    if config.data.micro_packs > 1:
        fewer = replace(config.data, micro_packs=1)
        changed = [replace(config, data=fewer), *changed, *(replace(one, data=fewer) for one in changed[-2:])]
    return [(_words(config, one), one) for one in changed]


def in_full(memory: MemoryConfig) -> MemoryConfig:
    """Everything recomputed in full."""
    return replace(memory, recompute="full", recompute_vision=memory.recompute_vision and "full")


def _words(before: TrainConfig, after: TrainConfig) -> str:
    """Each key that differs, with its new value."""
    pairs = [
        *(
            (f"memory.{name}", getattr(before.memory, name), getattr(after.memory, name))
            for name in ("recompute", "recompute_vision", "offload_activations_gb")
        ),
        ("data.micro_packs", before.data.micro_packs, after.data.micro_packs),
    ]
    return " and ".join(
        f"{key}: {now:g}" if isinstance(now, float) else f"{key}: {now}" for key, was, now in pairs if was != now
    )
