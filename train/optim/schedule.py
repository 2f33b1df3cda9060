"""The learning rate of each step, as a share of its peak."""

import math

from lmms.configs.settings.optim import OptimConfig


def _share_of(ratio: float, steps: int) -> int:
    """Steps of such a share, rounded up: 0.07 of 100 steps is 7, but 7.000000000000001 in float64."""
    return math.ceil(round(ratio * steps, 6))


def warmup_of(config: OptimConfig, steps: int) -> int:
    """Steps of warm-up in a run of so many steps."""
    return _share_of(config.warmup_ratio, steps) if config.warmup_steps is None else config.warmup_steps


def lr_share(step: int, config: OptimConfig, steps: int) -> float:
    """The factor of each peak learning rate at step 1, 2, ..., steps.

    Warm-up rises linearly from 0 at step 0 to 1 at its last step. The decay starts at 1 with the next step (wsd: when
    decay_ratio of the steps is left) and would reach the floor one step after the last, so that no step is spent at 0.
    """
    warmup = warmup_of(config, steps)
    if step <= warmup:
        return step / warmup
    stable = max(warmup, steps - _share_of(config.decay_ratio, steps)) if config.schedule == "wsd" else warmup
    done = max(step - 1 - stable, 0) / max(steps - stable, 1)
    match config.schedule:
        case "constant":
            share = 1.0
        case "linear" | "wsd":
            share = 1.0 - done
        case "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * done))
    return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * share
