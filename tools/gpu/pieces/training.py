"""A rung of the ladder: start, feed and steps of the trainer with these settings, timed, watched and profiled."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lmms.configs.contract.costs import ModelCost
from lmms.configs.contract.pack import Pack
from lmms.configs.load import load_config
from lmms.configs.settings.train import TrainConfig
from lmms.train import Learner, StepResult, dry_run, feed, start, start_world, stop_world, take_step, unwatched
from lmms.train.data.costs import pack_flops
from lmms.train.model.build import build_model
from lmms.train.model.flops import model_cost
from lmms.train.watch.marks import Mark, unmarked
from tools.gpu.pieces.ladder import LORA, RECOMPUTE, Rung, rung_of
from tools.gpu.pieces.losses import whole_cross_entropy
from tools.gpu.pieces.measuring import Steps, early_waits, faults_of, time_steps, waits_in
from tools.gpu.pieces.models import Sizes
from tools.gpu.pieces.packs import pack_file
from tools.gpu.pieces.trace import Trace, trace_step

_RATE = 1e-4
"""Peak learning rate: high enough for random weights to learn random tokens by heart."""


@dataclass(kw_only=True, slots=True)
class Training:
    """Result of a training. A step is one pass over the packs of a file."""

    model: str
    packs: str
    name: str
    """Name of the rung or comparator."""
    says: list[str]
    """Lines of the trainer at its start: kernels, trained parts."""
    parameters: int
    trained: int
    tokens: int
    """Tokens of a step; the next three fields are for a step too."""
    target_tokens: int
    patches: int
    flops: float
    """Operations of the model, strictly counted: see model_cost."""
    steps: Steps
    seconds: float
    """Median of a step."""
    tokens_per_s: float
    recompute: str
    optimizer_bytes: int
    """Least bytes that an update reads and writes."""
    waits: dict[str, int] | None = None
    """file:line -> how often a step waits for the GPU there."""
    trace: Trace | None = None
    faults: list[str] = field(default_factory=list)
    passed: bool = True


def settings_of(model: str, packs: str, rung: Rung, folder: str, output: str, sizes: Sizes) -> dict[str, Any]:
    """The settings of a run file for a rung on a file of packs."""
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
        **LORA.get(model, {}),
        **rung.settings,
    }


def predict_memory(
    model: str, packs: str, rungs: Sequence[str], folder: str, sizes: Sizes
) -> Iterator[dict[str, dict[str, int]]]:
    """Rung -> bytes by component at the peak of one rank, as `lmms train --dry-run` computes them; the dict grows.

    Rungs whose settings differ in kernels only need the same memory by this arithmetic, and are computed once.
    """
    predicted, known = dict[str, dict[str, int]](), dict[str, dict[str, int]]()
    for name in rungs:
        settings = settings_of(model, packs, rung_of(name), folder, f"{folder}/never", sizes)
        key = str(sorted((k, str(v)) for k, v in settings.items() if not k.startswith("kernels.")))
        if key not in known:
            known[key] = dry_run(load_config(TrainConfig, None, values=settings), 1, []).memory[0]
        predicted[name] = known[key]
        yield predicted


def measure_training(
    model: str, packs: str, rung: str, folder: str, output: str, seconds: float, sizes: Sizes
) -> Iterator[Training]:
    """Measure a rung on a file of packs in about these seconds; results come several times, each more complete."""
    deadline, chosen = time.monotonic() + seconds, rung_of(rung)
    config = load_config(TrainConfig, None, values=settings_of(model, packs, chosen, folder, output, sizes))
    says = list[str]()
    with ExitStack() as opened:
        world = start_world(config.device, config.stall_s)
        opened.callback(stop_world)
        Path(output).mkdir(parents=True)
        watch = replace(unwatched(), say=lambda event: says.append(str(event)))
        run, state = start(config, world, watch, backend=sizes.backend)
        if chosen.loss == "whole":
            run.learner.model.loss = whole_cross_entropy
        plans = opened.enter_context(closing(feed(run, state)))

        def take(mark: Mark = unmarked) -> StepResult:
            return take_step(run.learner, *next(plans), 1.0, replace(watch, mark=mark))

        cost = model_cost(build_model(run.learner.model.hf.config, "none"), config.train, config.lora)
        shown = pack_file(folder, packs)
        place = {"model": model, "packs": packs, "name": rung, "says": says}
        place["recompute"] = chosen.settings[RECOMPUTE]
        steps = time_steps(take, sizes, world.device, deadline)
        training = training_of(place, run.learner, steps, shown, cost)
        yield training
        training.waits = waits_in(take)
        early = early_waits(training.waits)
        if early and config.kernels.attention != "sdpa":
            training.faults.append(f"a step waits for the GPU before its end: {early}")
            training.passed = False
        yield training
        training.trace = trace_step(take, run.learner.optimizer, run.learner.model, world.device)
        yield training


def training_of(
    place: dict[str, Any], learner: Learner, steps: Steps, shown: Sequence[Pack], cost: ModelCost
) -> Training:
    """The figures of steps over these packs. place: model, packs, name, says and recompute."""
    parameters = list(learner.model.parameters())
    tokens, faults = sum(len(pack.input_ids) for pack in shown), faults_of(steps)
    return Training(
        **place,
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        tokens=tokens,
        target_tokens=sum(int((pack.targets[:, 1] - pack.targets[:, 0]).sum()) for pack in shown),
        patches=sum(pack.patches for pack in shown),
        flops=sum(pack_flops(cost, pack) for pack in shown),
        steps=steps,
        seconds=steps.median,
        tokens_per_s=tokens / steps.median,
        optimizer_bytes=update_bytes(learner.optimizer),
        faults=faults,
        passed=not faults,
    )


def update_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Least bytes moved by an update: weights and states read and written, gradients read twice (once for the norm)."""
    moved = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
            states = sum(tensor.nbytes for tensor in tensors if tensor.numel() > 1)
            moved += 2 * parameter.nbytes + 2 * states + 2 * parameter.nbytes
    return moved
