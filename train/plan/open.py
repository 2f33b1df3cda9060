"""A run before its weights are read: shards, model, order. Opening a run writes nothing and needs no ranks."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lmms.configs.contract.costs import ModelCost
from lmms.configs.contract.manifest import Dataset, Manifest, given_template
from lmms.configs.contract.model_folder import ModelFolder
from lmms.configs.settings.parallel import check_sequence_heads
from lmms.configs.settings.train import TrainConfig
from lmms.configs.stores.store import Cache, shown
from lmms.configs.words import counted
from lmms.train.batch.recipe import By, Recipe, make_recipe
from lmms.train.batch.shapes import shapes_of
from lmms.train.checkpoint.state import Base, TrainerState
from lmms.train.data.balance import packs_of_steps, straggler_loss
from lmms.train.data.order import ORDER_VERSION, Order
from lmms.train.data.phases import RunPhase, start_phase
from lmms.train.data.sets import Sets, costs_digest, find_sets, read_sets
from lmms.train.model.flops import model_cost
from lmms.train.model.folder import model_of
from lmms.train.model.forward import TrainModel
from lmms.train.model.lora import add_lora
from lmms.train.optim.groups import check_optim, set_trained
from lmms.train.parallel.share import WHOLE, Share
from lmms.train.plan.fit import check_one_template, fitting_model

_STEPS_LOOKED_AT, _MUCH_LOST = 64, 0.1
"""The number of steps whose balance is computed, and the share of time lost by waiting that is worth a remark."""
MOST_SOURCES = 64
"""The most sources for which the log has the loss of each: with thousands of sources its lines would grow long."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Opened:
    """A run whose settings, shards and model were found to fit one another."""

    sets: Sets
    evaluated: Sets | None
    """The shards of `eval`; their recipe is eval_recipe."""
    folder: ModelFolder
    model: TrainModel
    """A model on the meta device, with the trained and frozen parts of the settings."""
    recipe: Recipe
    eval_recipe: Recipe | None
    phase: RunPhase
    """The phase of a run that starts."""
    fresh: TrainerState
    """The state before step 1."""


def open_run(
    config: TrainConfig,
    beat: Callable[[str], None],
    share: Share = WHOLE,
    once: Callable[[Callable[[], list[list[Dataset]]]], list[list[Dataset]]] = lambda act: act(),
) -> Opened:
    """Check that the shards are complete, that the model can be built, and that both fit. beat is told what comes next.

    once: calls a function on one rank, and returns its result on all ranks. Raises subclasses of LmmsError.
    """
    beat("opening the shards")
    data = config.data
    cache = Cache(Path(data.cache).expanduser(), int(data.cache_gb * 1e9)) if data.cache else None
    places = [[set_share.shards for set_share in data.shares], *([[config.eval.shards]] if config.eval else [])]
    # Rank 0 alone asks for all files and their sizes: thousands of ranks would be a burden to a file server.
    train_sets, *eval_sets = once(lambda: [find_sets(group, cache, data.retry_s) for group in places])
    sets = read_sets(train_sets, config.loss_weight)
    evaluated = read_sets(eval_sets[0]) if eval_sets else None
    datasets = [*sets.datasets, *(evaluated.datasets if evaluated else ())]
    (folder, *_) = [fitting_model(config.model.path, dataset) for dataset in datasets]
    check_one_template(datasets)
    beat("building the model")
    model = make_model(config, folder.path)
    hf_config = model.hf.config
    check_sequence_heads(config.parallel.sequence, hf_config.get_text_config().num_attention_heads)
    manifests = [dataset.manifest for dataset in sets.datasets]
    recipe = make_recipe(manifests, hf_config, data.on_bad_media, _by(manifests), share, config.loss_weight)
    eval_recipe = None
    if evaluated:
        manifests = [dataset.manifest for dataset in evaluated.datasets]
        eval_recipe = make_recipe(manifests, hf_config, data.on_bad_media, _by(manifests), share)
    check_optim(model, config.optim)
    cost = model_cost(model, config.train, config.lora)
    phase = start_phase(config, sets, cost)
    return Opened(
        sets=sets,
        evaluated=evaluated,
        folder=folder,
        model=model,
        recipe=recipe,
        eval_recipe=eval_recipe,
        phase=phase,
        fresh=fresh_state(config, sets.datasets, folder.path, phase, cost),
    )


def _by(manifests: Sequence[Manifest]) -> By:
    """Whether the log has the loss on these shards by source, or by set."""
    return "source" if sum(len(manifest.sources) for manifest in manifests) <= MOST_SOURCES else "set"


def make_model(config: TrainConfig, folder: Path) -> TrainModel:
    """The model of a folder on the meta device, with LoRA and the trained and frozen parts of the settings."""
    model = model_of(folder, config.memory.recompute, config.memory.vision)
    add_lora(model, config.train, config.lora)
    set_trained(model, config.train, config.lora)
    return model


def expected_waiting(config: TrainConfig, order: Order, ranks: int, position: int) -> float:
    """Time that ranks lose by waiting for one another in the steps to come, see straggler_loss."""
    steps = packs_of_steps(order, position, _STEPS_LOOKED_AT)
    return straggler_loss(order.costs[None], steps, ranks, config.data.micro_packs)


def remarks(
    config: TrainConfig, order: Order, phase: RunPhase, ranks: int, steps: int, state: TrainerState
) -> list[str]:
    """A line for each thing that is no fault but may surprise, in a run of so many steps at this state.

    ranks: the number of ranks, or of groups of ranks, that read different packs.
    """
    packs, shared = order.global_packs, config.parallel.sequence
    sharers = counted(ranks, "rank") if shared == 1 else f"{counted(ranks, 'group')} of {shared} ranks"
    lines = []
    if packs > len(order.costs):
        lines.append(
            f"an epoch has {counted(len(order.costs), 'pack')}, fewer than data.global_packs ({packs}):"
            " a step takes some packs more than once"
        )
    if rest := packs % (ranks * config.data.micro_packs):
        lines.append(
            f"data.global_packs ({packs}) is no multiple of {sharers} x {config.data.micro_packs} packs a pass:"
            f" in the last pass of each step {counted(rest, 'pack counts', 'packs count')}, and some ranks have nothing"
            " to add"
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
    group = config.data.group_packs
    if cut := [share.shards for share in phase.sets if share.cursor % group]:
        lines.append(
            f"this phase of the run began at pack {phase.position:,}, within a group of {group} packs of"
            f" {', '.join(map(shown, cut))}: its steps hold parts of groups from there on, and ranks wait longer; a"
            f" checkpoint at a multiple of {group} packs has no such groups"
        )
    lost = expected_waiting(config, order, ranks, state.position)
    if lost > _MUCH_LOST:
        lines.append(
            f"ranks will wait {lost:.0%} longer than if all packs cost alike; `lmms inspect order` shows what another"
            " data.group_packs would change"
        )
    if state.step >= steps:
        lines.append(f"nothing left to do: the run is at step {state.step} of {steps}")
    return lines


def fresh_state(
    config: TrainConfig, datasets: Sequence[Dataset], model: Path, phase: RunPhase, cost: ModelCost
) -> TrainerState:
    """The state of a run with these settings before its first step."""
    manifest = datasets[0].manifest
    return TrainerState(
        step=0,
        position=0,
        seed=config.seed,
        order=ORDER_VERSION,
        shards=tuple(dataset.index_hash for dataset in datasets),
        group_packs=config.data.group_packs,
        costs=costs_digest(cost),
        fingerprints={
            **{name: manifest.fingerprints.get(name, "") for name in ("tokenizer", "template", "vision")},
            **({"audio": manifest.fingerprints.get("audio", "")} if manifest.audio else {}),
            "packing": manifest.packing,
        },
        phases=(phase,),
        global_packs=config.data.global_packs,
        model=str(model.resolve()),
        base=Base(),
        zero_steps={},
        skipped=0,
        best=None,
        config=asdict(config),
        chat_template=given_template(datasets[0]),
    )


def padded(config: TrainConfig, opened: Opened) -> Opened:
    """The same run with recipes whose batches have few shapes, for training and evaluation."""
    every = [opened.sets, *([opened.evaluated] if opened.evaluated else [])]
    sidecars = [sidecar for sets in every for sidecar in sets.sidecars]
    seq_len = max(dataset.manifest.seq_len for sets in every for dataset in sets.datasets)
    audio = opened.recipe.sets[0].limits.audio
    shapes = shapes_of(sidecars, seq_len, config.data.micro_packs, opened.recipe.tower, audio)
    evaluation = replace(opened.eval_recipe, shapes=shapes) if opened.eval_recipe else None
    return replace(opened, recipe=replace(opened.recipe, shapes=shapes), eval_recipe=evaluation)
