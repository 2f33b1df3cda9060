"""A run up to its first step: shards, order, model, optimizer, and where it goes on from."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from lmms.configs.by_part import Part
from lmms.configs.errors import TrainError
from lmms.configs.load import to_yaml
from lmms.configs.manifest import Dataset
from lmms.configs.store import Cache, shown
from lmms.configs.train import TrainConfig
from lmms.train.balance import straggler_loss, take_steps
from lmms.train.checkpoint import TrainerState, list_checkpoints, load_checkpoint, read_state, tensors_of
from lmms.train.fit import fitting_model, model_of
from lmms.train.flops import ModelCost, model_cost
from lmms.train.initial import fill_initial, plan_initial
from lmms.train.lora import add_lora
from lmms.train.metrics import open_metrics
from lmms.train.model import TrainModel, blocks, keep_in, materialize
from lmms.train.optim import make_optimizer, set_trained, trained_parts
from lmms.train.order import ORDER_VERSION, Order
from lmms.train.parallel import World, compute_dtype, shard_model
from lmms.train.phases import RunPhase, go_on, order_of, phase_from_json, run_steps, start_phase, write_phases
from lmms.train.recipe import Recipe, make_recipe
from lmms.train.resume import changes, on_main, resume_from, resumed_state
from lmms.train.retention import Measure, resumed_best
from lmms.train.sets import Sets, costs_digest, open_sets, shares
from lmms.train.trained import Row, table_lines, trained_table, write_table

_STEPS_LOOKED_AT, _MUCH_LOST = 64, 0.1
"""The steps whose balance is looked at, and the share of time lost by waiting from which a person should know."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Run:
    """What stays the same from the first step to the last, on one rank."""

    config: TrainConfig
    output: Path
    world: World
    sets: Sets
    phase: RunPhase
    steps: int
    """Of the whole run."""
    order: Order
    recipe: Recipe
    model: TrainModel
    optimizer: torch.optim.Optimizer
    parts: Mapping[Part, Sequence[nn.Parameter]]
    held: frozenset[str]
    """The parameters that checkpoints hold."""
    evaluated: Sets | None
    """The shards of `eval`; with them goes eval_recipe."""
    eval_recipe: Recipe | None
    measure: Measure | None
    """Of the best checkpoint."""


def start(
    config: TrainConfig, output: Path, world: World, say: Callable[[str], None], beat: Callable[[str], None]
) -> tuple[Run, TrainerState]:
    """The run, with the weights of the checkpoint that it goes on from, and its state there. All ranks together.

    say is called with what a person should know, on rank 0; beat with what comes next, for the watchdog.
    """
    beat("opening the shards")
    data = config.data
    cache = Cache(Path(data.cache).expanduser(), int(data.cache_gb * 1e9)) if data.cache else None
    sets = open_sets([share.shards for share in shares(data)], cache, data.retry_s)
    evaluated = open_sets([config.eval.shards], cache, data.retry_s) if config.eval else None
    datasets = [*sets.datasets, *(evaluated.datasets if evaluated else ())]
    (folder, *_) = [fitting_model(config.model.path, dataset) for dataset in datasets]
    beat("building the model")
    model = model_of(folder.path, config.model.recompute)
    hf_config = model.hf.config
    recipe = make_recipe([dataset.manifest for dataset in sets.datasets], hf_config, data.on_bad_media)
    eval_recipe = None
    if evaluated:
        manifests = [dataset.manifest for dataset in evaluated.datasets]
        eval_recipe = make_recipe(manifests, hf_config, data.on_bad_media, by="source")
    cost = model_cost(hf_config, config.train, config.lora)
    now = start_phase(config, sets, cost)
    fresh = _fresh_state(config, sets.datasets, folder.path, now, cost)

    found = resume_from(config.resume, output, world, say)
    stored = read_state(found) if found else None
    state = resumed_state(fresh, stored, found, config.resume_changes) if found and stored else fresh
    phases = go_on([phase_from_json(phase) for phase in state.phases], now, state.step, state.position)
    measure = _measure(config, evaluated)
    best = on_main(world, lambda: resumed_best(output, state.best, measure, say))
    state = replace(state, phases=[asdict(phase) for phase in phases], best=best)

    add_lora(model, config.train, config.lora)
    set_trained(model, config.train, config.lora)
    initial = plan_initial(config, folder.path, model, world, found, say)
    state = replace(state, base=asdict(initial.base))
    dtype = compute_dtype(config.model.precision, world.device)
    keep_in(model, dtype, initial.held)
    shard_model(model, blocks(model), world, dtype)
    materialize(model, world.device)
    optimizer = make_optimizer(model, config.optim)
    beat("reading the weights")
    fill_initial(initial, model, config.seed)
    if found:
        load_checkpoint(found, tensors_of(model, optimizer, initial.held), verified=True)
    table = trained_table(model, optimizer)
    if world.is_main:
        _open_output(output, config, state, phases, table, say)
    for line in table_lines(table):
        say(line)
    say(f"resumed from {found} at step {state.step}" if found else "started at step 0")
    for line in changes(stored.config, state.config) if stored else ():
        say(line)
    run = Run(
        config=config,
        output=output,
        world=world,
        sets=sets,
        phase=phases[-1],
        steps=run_steps(config, phases),
        order=order_of(sets, phases[-1]),
        recipe=recipe,
        model=model,
        optimizer=optimizer,
        parts=trained_parts(model),
        held=initial.held,
        evaluated=evaluated,
        eval_recipe=eval_recipe,
        measure=measure,
    )
    for line in _remarks(run, state):
        say(line)
    return run, state


def _measure(config: TrainConfig, evaluated: Sets | None) -> Measure | None:
    metric = config.metric_for_best_model
    if metric is None:
        return None
    shards = evaluated.datasets[0].index_hash if evaluated and metric == "eval_loss" else ""
    return Measure(metric=metric, greater=config.greater_is_better, shards=shards)


def _fresh_state(
    config: TrainConfig, datasets: Sequence[Dataset], model: Path, phase: RunPhase, cost: ModelCost
) -> TrainerState:
    manifest = datasets[0].manifest
    return TrainerState(
        step=0,
        position=0,
        seed=config.seed,
        order=ORDER_VERSION,
        shards=[dataset.index_hash for dataset in datasets],
        group_packs=config.data.group_packs,
        costs=costs_digest(cost),
        fingerprints={
            **{name: manifest.fingerprints.get(name, "") for name in ("tokenizer", "template", "vision")},
            "packing": manifest.packing,
        },
        phases=[asdict(phase)],
        global_packs=config.data.global_packs,
        model=str(model.resolve()),
        base={},
        zero_steps={},
        best=None,
        config=asdict(config),
    )


def _open_output(
    output: Path,
    config: TrainConfig,
    state: TrainerState,
    phases: Sequence[RunPhase],
    table: Sequence[Row],
    say: Callable[[str], None],
) -> None:
    """The output folder as a run that stands at `state` goes on with it."""
    try:
        part = output / "config.yaml.part"
        part.write_text(to_yaml(config), encoding="utf-8")
        part.rename(output / "config.yaml")
        write_phases(output, phases)
        write_table(output, table)
        open_metrics(output, state.step)
    except OSError as error:
        raise TrainError(
            f"{output} cannot be written: {error.strerror}; make room, or choose another output"
        ) from error
    for unfinished in list_checkpoints(output)[1]:
        say(f"not used, since it is not complete: {unfinished}")


def _remarks(run: Run, state: TrainerState) -> list[str]:
    """What is no fault, but may surprise."""
    config, packs, ranks = run.config, run.order.global_packs, run.world.size
    lines = []
    if packs > len(run.order.costs):
        lines.append(
            f"an epoch has {len(run.order.costs)} packs, fewer than data.global_packs ({packs}):"
            " a step takes some packs more than once"
        )
    if rest := packs % (ranks * config.data.micro_packs):
        lines.append(
            f"data.global_packs ({packs}) is no multiple of {ranks} ranks x {config.data.micro_packs} packs a pass:"
            f" in the last pass of each step {rest} packs count, and some ranks have nothing to add"
        )
    if packs % config.data.group_packs:
        lines.append(
            f"data.global_packs ({packs}) is no multiple of data.group_packs ({config.data.group_packs}): steps hold"
            " parts of groups, and are not balanced as well as they could be"
        )
    patience = float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30"))
    if "TORCHELASTIC_RUN_ID" in os.environ and patience < config.grace_s:
        lines.append(
            f"the launcher kills ranks {patience:g} s after SIGTERM, before grace_s ({config.grace_s:g} s) is over; set"
            " TORCH_ELASTIC_SHUTDOWN_TIMEOUT to more than that"
        )
    group, phase = config.data.group_packs, run.phase
    if cut := [share.shards for share in phase.sets if share.cursor % group]:
        lines.append(
            f"this phase of the run began at pack {phase.position:,}, within a group of {group} packs of"
            f" {', '.join(map(shown, cut))}: its steps hold parts of groups from there on, and ranks wait longer; a"
            f" checkpoint at a multiple of {group} packs has no such groups"
        )
    steps = take_steps(run.order, state.position, _STEPS_LOOKED_AT)
    lost = straggler_loss(run.order.costs[None], steps, ranks, config.data.micro_packs)
    if lost > _MUCH_LOST:
        lines.append(
            f"ranks will wait {lost:.0%} longer than if all packs cost alike; `lmms inspect order` shows what another"
            " data.group_packs would change"
        )
    if state.step >= run.steps:
        lines.append(f"nothing left to do: the run is at step {state.step} of {run.steps}")
    return lines
