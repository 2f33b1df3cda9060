"""Settings that contradict nothing but are probably a mistake: a line for each, before a run and in a dry run."""

from collections.abc import Iterator

from torch import nn

from lmms.configs.by_part import PARTS, setting_of
from lmms.configs.settings.optim import OptimConfig
from lmms.train.model.names import is_lora, parameter_name, part_of
from lmms.train.optim.schedule import warmup_of

_LOW_FOR_LORA = 5e-5
"""The paper of LoRA (arXiv 2106.09685) trains at 2e-4; a rate for full training is about a tenth of that."""


def likely_mistakes(optim: OptimConfig, model: nn.Module, steps: int) -> Iterator[str]:
    """A line for each probable mistake in the learning rates of a model in a run of so many steps.

    model: its trained and frozen parameters are set; on any device.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    reached = {part_of(model, name) for name in trained}
    for part in PARTS:
        if part in optim.lr and part not in reached:
            yield f"optim.lr.{part} is set, but nothing of {part} is trained: train freezes it"
    rates = {setting_of(optim.lr, part_of(model, name), parameter_name(name)) for name in trained if is_lora(name)}
    if rates and max(rates) < _LOW_FOR_LORA:
        yield f"LoRA is trained at {max(rates):g}, which is low for LoRA; optim.lr of 1e-4 to 2e-4 is usual"
    warmup = warmup_of(optim, steps)
    if warmup > steps:
        yield (
            f"the learning rate warms up for {warmup} steps, and the run has {steps}: it never reaches its peak; set"
            " fewer optim.warmup_steps"
        )
