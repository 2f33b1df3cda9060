"""Training steps of one model by the trainer's own path, timed as a user would wait for them.

A step is one pass over a shard folder: every step sees the same packs, so the loss has to fall.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from transformers import PretrainedConfig

from lmms.configs.errors import TrainError
from lmms.configs.manifest import open_dataset
from lmms.configs.optim import OptimConfig
from lmms.train.ahead import ahead
from lmms.train.flops import ModelCost, model_cost, pack_flops, peak_flops
from lmms.train.loader import batches
from lmms.train.metrics import peak_memory
from lmms.train.mixture import Phase
from lmms.train.model import TrainModel, blocks, build_model, init_random, materialize
from lmms.train.optim import make_optimizer, trained_parts
from lmms.train.parallel import World, compute_dtype, shard_model, start_world, stop_world
from lmms.train.passes import StepPlan, plan_steps
from lmms.train.recipe import make_recipe
from lmms.train.sets import Sets, make_order, open_sets
from lmms.train.signals import Asked
from lmms.train.step import StepResult, take_step
from lmms.train.stream import PackReader
from tools.gpu.configs import read_config
from tools.gpu.facts import synchronize
from tools.gpu.plan import Run

WARM_STEPS, TIMED_STEPS = 2, 5
STALL_S = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What training on one shard folder came to. A step is one pass over it."""

    model: str
    seq_len: int
    precision: str
    thin: bool
    parameters: int
    init_seconds: float
    """To draw random weights and make the optimizer."""
    packs: int
    """Of a step, as are the next four."""
    tokens: int
    target_tokens: int
    images: int
    patches: int
    losses: list[float]
    """Of each step, those before the timed ones too."""
    step_seconds: list[float]
    """Of the timed steps: from asking for data until the weights are updated."""
    tokens_per_s: float
    data_wait: float
    """Share of the timed steps in which the trainer waited for data."""
    model_flops: float
    """Operations of a step, see lmms.train.flops."""
    mfu: float | None
    """Operations a second as a share of the data sheet's peak; None for a device that is not in the table."""
    matmul_share: float
    """The same as a share of the speed of one large product on this device."""
    peak_memory: int
    faults: list[str]
    passed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A shard folder whose packs do not fit into this device's memory."""

    model: str
    seq_len: int
    skipped: str
    passed: bool = True


def measure(run: Run, seconds: float, matmul_flops: float) -> Iterator[Measured | Skipped]:
    """A result for each of the run's shard folders, in about these seconds.

    The shortest packs have to fit into memory. The first that do not are skipped, with all that are longer.
    """
    deadline = time.monotonic() + seconds
    world = start_world("auto")
    hf_config = read_config(Path(run.model), run.thin)
    model = build_model(hf_config, "full")
    shard_model(model, blocks(model), world, compute_dtype(run.precision, world.device))
    materialize(model, world.device)
    for i, folder in enumerate(run.shards):
        share = (deadline - time.monotonic()) / (len(run.shards) - i)
        try:
            yield _measure(run, model, hf_config, Path(folder), world, time.monotonic() + share, matmul_flops)
        except torch.OutOfMemoryError as error:
            if i == 0:
                raise
            seq_len = open_dataset(Path(folder)).manifest.seq_len
            yield Skipped(model=Path(run.model).name, seq_len=seq_len, skipped=str(error))
            break
    stop_world()


def _measure(
    run: Run,
    model: TrainModel,
    hf_config: PretrainedConfig,
    folder: Path,
    world: World,
    deadline: float,
    matmul_flops: float,
) -> Measured:
    sets = open_sets([folder])
    (dataset,), (sidecar,) = sets.datasets, sets.sidecars
    cost = model_cost(hf_config)
    began = time.perf_counter()
    init_random(model, seed=0)
    optimizer = make_optimizer(model, OptimConfig(lr={"default": run.lr}))
    synchronize(world.device)
    init_seconds = time.perf_counter() - began
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)

    recipe = make_recipe([dataset.manifest], hf_config, "stop")
    plans = _plans(sets, cost)
    requests = [request for plan in plans for request in plan.passes]
    made = batches(PackReader([dataset]), recipe, requests, run.workers, STALL_S)
    loader = ahead(made, world.device)
    parts = trained_parts(model)
    results: list[StepResult] = []
    seconds: list[float] = []
    for plan in plans:
        began = time.perf_counter()
        results.append(take_step(model, optimizer, parts, plan, loader, world, 1.0, 1.0, Asked(), lambda coming: None))
        if results[-1].fault:
            raise TrainError(results[-1].fault)
        synchronize(world.device)
        seconds.append(time.perf_counter() - began)
        if len(seconds) > WARM_STEPS and time.monotonic() + seconds[-1] > deadline:
            break

    timed, losses = seconds[WARM_STEPS:], [result.loss for result in results]
    mean = sum(timed) / len(timed)
    flops = _flops(cost, PackReader([dataset]), sets)
    peak = peak_flops(torch.cuda.get_device_name(world.device)) if world.device.type == "cuda" else None
    faults = _faults(losses)
    return Measured(
        model=Path(run.model).name,
        seq_len=dataset.manifest.seq_len,
        precision=run.precision,
        thin=run.thin,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        init_seconds=init_seconds,
        packs=len(sidecar),
        tokens=plans[0].tokens,
        target_tokens=plans[0].target_tokens,
        images=int(sidecar.media.sum()),
        patches=int(sidecar.patches.sum()),
        losses=losses,
        step_seconds=timed,
        tokens_per_s=plans[0].tokens / mean,
        data_wait=sum(result.waited for result in results[WARM_STEPS:]) / sum(timed),
        model_flops=flops,
        mfu=flops / mean / peak if peak else None,
        matmul_share=flops / mean / matmul_flops,
        peak_memory=peak_memory(world.device),
        faults=faults,
        passed=not faults,
    )


def _plans(sets: Sets, cost: ModelCost) -> list[StepPlan]:
    """The same packs in every step, one in a forward pass, in the order that the trainer would take."""
    order = make_order(sets, Phase(), cost, seed=0, global_packs=len(sets.tokens))
    return list(islice(plan_steps(order, sets, 0, 1, 1, 0, 0, look_ahead=False), WARM_STEPS + TIMED_STEPS))


def _flops(cost: ModelCost, reader: PackReader, sets: Sets) -> float:
    total = sum(pack_flops(cost, reader.read(sets.place(pack))) for pack in range(len(sets.tokens)))
    reader.close()
    return total


def _faults(losses: list[float]) -> list[str]:
    if not all(math.isfinite(loss) for loss in losses):
        return [f"losses {losses} are not all finite"]
    return [] if losses[-1] < losses[0] else [f"the loss did not fall: {losses[0]:.4f}, then {losses[-1]:.4f}"]
