"""lmms inspect order: the steps of a run before it is trained."""

import json
from dataclasses import asdict
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lmms.cli import ui
from lmms.cli.inspect.order_settings import order_settings
from lmms.configs.words import counted

if TYPE_CHECKING:
    from lmms.train.plan.preview import Preview

_STEPS_SHOWN = 5
_RANKS = (8, 64, 512)
_PACKS_A_RANK = (1, 2, 4, 8)
_SHARE_SHOWN = 0.01


class _Part(StrEnum):
    VISION = "vision"
    ALIGNER = "aligner"
    LLM = "llm"


def order(
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DIR...",
            help="Shard folders or URLs; several are mixed. Or a run's output folder, to go on from.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Run file of `lmms train`, for its order. Default in a run's folder: its own.")
    ] = None,
    global_batch: Annotated[
        int | None, typer.Option(metavar="G", min=1, help="Packs of a step, data.global_packs; required with shards.")
    ] = None,
    world: Annotated[int, typer.Option(metavar="W", min=1, help="Ranks, divided by parallel.sequence.")] = 1,
    micro: Annotated[
        int | None, typer.Option(metavar="M", min=1, help="Packs of a pass, data.micro_packs; 1 by default.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="K", min=0, help="Loader processes a rank, data.workers; 2 by default.")
    ] = None,
    epochs: Annotated[int, typer.Option(metavar="E", min=1, help="Passes over the shards to look at.")] = 1,
    group: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Neighbours of like cost, data.group_packs; 1 by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="S", help="The run's seed; 0 by default.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="DIR_OR_ID", help="What is trained, if not what the shards were built for.")
    ] = None,
    freeze: Annotated[
        list[_Part] | None, typer.Option(help="A part that is not trained, as in the setting `train`; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a step, nothing else.")] = False,
) -> None:
    """Show the steps of a run to come: digests, balance of the ranks, mix of the sources, what a rank reads.

    Example: lmms inspect order shards/ --global-batch 64 --world 8 --group 8
    """
    from lmms.train.data.balance import repeats
    from lmms.train.plan.preview import preview, step_previews

    options = {
        "--global-batch": global_batch,
        "--micro": micro,
        "--workers": workers,
        "--group": group,
        "--seed": seed,
        "--model": model,
        "--freeze": [part.value for part in freeze or ()],
    }
    settings, run = order_settings(places or (), config, options, epochs)
    seen = preview(settings, world=world, epochs=epochs, run=run)
    if as_json:
        for one in step_previews(seen):
            typer.echo(json.dumps(asdict(one), ensure_ascii=False))
        return
    screen = ui.console()
    screen.print(ui.facts(f"order of {counted(len(seen.order.costs), 'pack')}", _summary(seen, settings.data.workers)))
    screen.print(_first_steps(seen))
    screen.print(_losses(seen))
    times = ", ".join(counted(number, "time") for number in repeats(seen.order))
    screen.print("balance: cost of the mean rank over that of the dearest, summed over the passes of a step")
    screen.print(f"lost: one pack a pass, sets repeated {times} to fill a window; in two waits: group = ranks")


def _summary(seen: "Preview", workers: int) -> list[tuple[str, str]]:
    from lmms.train.data.balance import straggler_loss
    from lmms.train.data.order import ORDER_VERSION

    order, costs = seen.order, seen.order.costs
    low, high = (float(bound / costs.mean()) for bound in (costs.min(), costs.max()))
    (once, once_random), (twice, twice_random) = (
        [straggler_loss(rows, steps, seen.world, seen.micro_packs) for steps in (seen.steps, seen.shuffled)]
        for rows in (costs[None], seen.costs)
    )
    vision = seen.costs[1].sum() / costs.sum()
    steps_an_epoch = len(costs) / order.global_packs
    return [
        *(
            ("shards", f"{dataset.where}: {counted(len(sidecar), 'pack')} in {counted(len(dataset.shards), 'shard')}")
            for dataset, sidecar in zip(seen.sets.datasets, seen.sets.sidecars, strict=True)
        ),
        *([("goes on", f"after step {seen.step:,}, {counted(seen.position, 'pack')}")] if seen.step else []),
        ("order", f"{ORDER_VERSION}, seed {order.sets[0].seed}, groups of {order.phase.group}"),
        ("steps", f"{len(seen.steps):,} of {counted(order.global_packs, 'pack')}; an epoch has {steps_an_epoch:,.2f}"),
        ("cost of a pack", f"{low:.2f} to {high:.2f} of the mean; {vision:.1%} of all is the vision tower"),
        ("lost by waiting", f"{once:.2%} on {counted(seen.world, 'rank')}, {once_random:.2%} in random order"),
        ("  in two waits", f"{twice:.2%}, {twice_random:.2%} in random order: after the vision tower too"),
        ("rank 0 reads", _reads(seen, workers)),
        ("mix of sources", _mix(seen)),
        ("sources", _shares(seen)),
    ]


def _reads(seen: "Preview", workers: int) -> str:
    from lmms.train.plan.preview import rank_reads

    reads = rank_reads(seen.sets, seen.steps[0], 0, seen.world, seen.micro_packs)
    shared = f", shared by {workers} workers" if workers > 1 else ""
    packs = f"{counted(reads.packs, 'pack')} of {counted(reads.shards, 'shard')}"
    return f"{packs} in step 1, {ui.count(reads.bytes)}B{shared}"


def _mix(seen: "Preview") -> str:
    from lmms.train.data.sources import design_effects

    if len(seen.sources.names) == 1:
        return "one source"
    found = [f"{effect:.2f} over {length}" for length, effect in design_effects(seen.sources, seen.steps).items()]
    if not found:
        return "takes four steps to tell; see --epochs"
    return f"{', '.join(found)} steps, in units of the variance that random order has"


def _shares(seen: "Preview") -> str:
    from lmms.train.plan.preview import source_shares

    shares = dict(zip(seen.sources.names, source_shares(seen).mean(axis=0).tolist(), strict=True))
    shown = sorted((name for name in shares if shares[name] >= _SHARE_SHOWN), key=lambda name: -shares[name])
    rest = f", and {len(shares) - len(shown)} of less" if len(shown) < len(shares) else ""
    return ", ".join(f"{name} {shares[name]:.1%}" for name in shown) + rest


def _first_steps(seen: "Preview") -> Table:
    from lmms.train.plan.preview import step_previews

    table = ui.columns("first steps", "step", "digest", "tokens", "balance", "random", "most tokens")
    for one in islice(step_previews(seen), _STEPS_SHOWN):
        source = max(one.sources, key=lambda name: one.sources[name])
        numbers = (f"{one.step}", one.digest, f"{one.tokens:,}", f"{one.balance:.1%}", f"{one.balance_random:.1%}")
        table.add_row(*numbers, f"{one.sources[source]:.0%} {source}")
    return table


def _losses(seen: "Preview") -> Table:
    from lmms.train.data.balance import expected_loss

    names = ("ranks", "packs a rank", "random", "group 1", "group = ranks", "in two waits")
    table = ui.columns("lost by waiting", *names)
    for world in _RANKS:
        for packs_a_rank in _PACKS_A_RANK:
            alone, grouped = (expected_loss(seen.order, seen.costs, world, packs_a_rank, group) for group in (1, world))
            losses = (alone.random, alone.ordered, grouped.ordered, grouped.ordered_twice)
            table.add_row(f"{world}", f"{packs_a_rank}", *(f"{loss:.2%}" for loss in losses))
    return table
