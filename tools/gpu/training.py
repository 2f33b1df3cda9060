"""A rung of the ladder: the trainer's own start and steps with these settings, timed, watched and profiled."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from lmms.configs.load import load_config
from lmms.configs.settings.train import TrainConfig
from lmms.train.batch.loader import batches
from lmms.train.batch.transfer import ahead
from lmms.train.data.costs import pack_flops
from lmms.train.data.shards import PackReader
from lmms.train.data.steps import RankShare, plan_steps
from lmms.train.model.flops import model_cost
from lmms.train.model.kernels import compile_blocks
from lmms.train.parallel.world import start_world, stop_world
from lmms.train.start import Run, start
from lmms.train.step import StepResult, take_step
from lmms.train.watch.marks import Mark, unmarked
from lmms.train.watch.signals import Asked
from tools.gpu.losses import whole_cross_entropy
from tools.gpu.packs import pack_file
from tools.gpu.rungs import OF_MODEL, RECOMPUTE, Rung, rung_of
from tools.gpu.sizes import Sizes
from tools.gpu.steps import Steps, faults_of, time_steps
from tools.gpu.traces import Trace, trace_step
from tools.gpu.waits import early_waits, waits_in

LOSS_AT = "lmms.train.model.build.linear_cross_entropy"
"""Where the trainer's model finds its loss."""
_RATE = 1e-4
"""Peak learning rate: random weights learn random tokens by heart."""


@dataclass(kw_only=True, slots=True)
class Measured:
    """What a training came to. A step is one pass over the packs of a file."""

    model: str
    packs: str
    name: str
    """Of the rung or comparator."""
    says: list[str]
    """What the trainer said at its start: kernels, what is trained."""
    parameters: int
    trained: int
    tokens: int
    """Of a step, as are the next three."""
    target_tokens: int
    patches: int
    flops: float
    """Operations of the model for a step, strictly counted: see lmms.train.model.flops."""
    steps: Steps
    seconds: float
    """Median of a step."""
    tokens_per_s: float
    recompute: str
    optimizer_bytes: int
    """What an update reads and writes at least."""
    waits: dict[str, int] | None = None
    """file:line -> how often a step waits for the GPU there."""
    trace: Trace | None = None
    faults: list[str] | None = None
    passed: bool = True


def settings_of(model: str, packs: str, rung: Rung, folder: str, output: str, sizes: Sizes) -> dict[str, Any]:
    """The settings of a run file: a rung's, on a file of packs."""
    return {
        "model.path": f"{folder}/model",
        "model.init": "random",
        "model.precision": sizes.precision,
        "data.shards": f"{folder}/{packs}",
        "data.global_packs": sizes.packs,
        "data.workers": sizes.workers,
        "output": output,
        "max_steps": 1000,
        "resume": "never",
        "device": sizes.device,
        "optim.lr": _RATE,
        **OF_MODEL.get(model, {}),
        **rung.settings,
    }


def measure_training(
    model: str, packs: str, rung: str, folder: str, output: str, seconds: float, sizes: Sizes
) -> Iterator[Measured]:
    """Measure a rung on a file of packs in about these seconds; what is found comes more than once, ever more of it."""
    deadline = time.monotonic() + seconds
    chosen = rung_of(rung)
    config = load_config(TrainConfig, None, values=settings_of(model, packs, chosen, folder, output, sizes))
    with ExitStack() as held:
        if sizes.backend != "inductor":
            held.enter_context(patch("lmms.train.start.compile_blocks", partial(compile_blocks, backend=sizes.backend)))
        if chosen.loss == "whole":
            held.enter_context(patch(LOSS_AT, whole_cross_entropy))
        yield from _measure(config, Path(folder), packs, rung, deadline, sizes, held)


def _measure(
    config: TrainConfig, folder: Path, packs: str, rung: str, deadline: float, sizes: Sizes, held: ExitStack
) -> Iterator[Measured]:
    world = start_world(config.device, config.stall_s, config.parallel.sequence)
    held.callback(stop_world)
    Path(config.output).mkdir(parents=True)
    says = list[str]()
    run, _ = start(config, Path(config.output), world, says.append, lambda coming: None)
    every = plan_steps(run.order, run.sets, RankShare(world.data_rank, world.data_size, config.data.micro_packs))
    plans, coming = tee(every)
    requests = (request for plan in coming for request in plan.passes)
    made = batches(PackReader(run.sets.datasets), run.recipe, requests, config.data.workers, config.stall_s)
    arriving = held.enter_context(closing(ahead(held.enter_context(closing(made)), world.device)))

    def take(mark: Mark = unmarked) -> StepResult:
        of_run = (run.model, run.optimizer, run.parts, next(plans), arriving, world)
        return take_step(*of_run, 1.0, config.optim.max_grad_norm, Asked(), lambda coming: None, mark)

    steps = time_steps(take, sizes, world.device, deadline)
    found = _found(run, config, folder, packs, rung, says, steps)
    yield found
    found.waits = waits_in(take)
    early = early_waits(found.waits)
    if early and config.kernels.attention != "sdpa":
        found.faults = [*(found.faults or ()), f"a step waits for the GPU before its end: {early}"]
        found.passed = False
    yield found
    found.trace = trace_step(take, run.optimizer, LOSS_AT, world.device)
    yield found


def _found(
    run: Run, config: TrainConfig, folder: Path, packs: str, rung: str, says: list[str], steps: Steps
) -> Measured:
    parameters = list(run.model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    cost = model_cost(run.model.hf.config, config.train, config.lora)
    shown = pack_file(folder, packs)
    tokens = int(run.sets.tokens.sum())
    faults = faults_of(steps)
    return Measured(
        model=folder.name,
        packs=packs,
        name=rung,
        says=says,
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in trained),
        tokens=tokens,
        target_tokens=int(run.sets.target_tokens.sum()),
        patches=sum(pack.patches for pack in shown),
        flops=sum(pack_flops(cost, pack) for pack in shown),
        steps=steps,
        seconds=steps.median,
        tokens_per_s=tokens / steps.median,
        recompute=str(_setting(asdict(config), RECOMPUTE)),
        optimizer_bytes=update_bytes(run.optimizer),
        faults=faults,
        passed=not faults,
    )


def update_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What an update moves at least: weights and states read and written, gradients read, for their norm once more."""
    moved = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
            states = sum(tensor.nbytes for tensor in tensors if tensor.numel() > 1)
            moved += 2 * parameter.nbytes + 2 * states + 2 * parameter.nbytes
    return moved


def _setting(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value
