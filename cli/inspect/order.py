"""lmms inspect order: the steps of a run, before the training."""

import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lmms.cli import ui
from lmms.cli.inspect.order_settings import order_settings
from lmms.cli.settings import options_of
from lmms.configs.words import counted

if TYPE_CHECKING:
    from lmms.train.plan.preview import Preview

_STEPS_SHOWN = 5
_RANKS = (8, 64, 512)
_PACKS_A_RANK = (1, 2, 4, 8)
_SHARE_SHOWN = 0.01


def order(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DIR...|FILE|KEY=VALUE",
            help="Shard folders or URLs, several are mixed; or a run's output folder, to go on from there; or its run"
            " file. Settings as for `lmms train`.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The run file, if not named first; a run's folder has its own.")
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks that read different packs.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the shards to look at.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a step, nothing else.")] = False,
) -> None:
    """Show the steps of a run to come: digests, balance of the ranks, mix of the sources, what a rank reads.

    Example: lmms inspect order shards/ data.global_packs=64 data.group_packs=8 --ranks 8
    """
    from lmms.train.data.balance import repeats
    from lmms.train.plan.preview import preview, step_previews

    settings, run = order_settings(words or (), config, epochs, options_of(order))
    with ui.doing("opening the shards and the model, which says what a pack costs"):
        view = preview(settings, ranks=ranks, epochs=epochs, run=run)
    if as_json:
        for step in step_previews(view):
            typer.echo(json.dumps(asdict(step), ensure_ascii=False))
        return
    screen = ui.console()
    screen.print(ui.facts(f"order of {counted(len(view.order.costs), 'pack')}", _summary(view)))
    screen.print(_first_steps(view))
    screen.print(_losses(view))
    if dear := _dear_packs(view):
        screen.print(dear)
    times = ", ".join(counted(number, "time") for number in repeats(view.order))
    screen.print("balance: cost of the mean rank over that of the most expensive, summed over the passes of a step")
    screen.print(f"lost: one pack a pass, sets repeated {times} to fill a window; in two waits: group = ranks")


def _summary(view: "Preview") -> list[tuple[str, str]]:
    from lmms.train.data.balance import straggler_loss
    from lmms.train.data.order import ORDER_VERSION

    order, costs = view.order, view.order.costs
    low, high = (float(bound / costs.mean()) for bound in (costs.min(), costs.max()))
    (once, once_random), (twice, twice_random) = (
        [straggler_loss(rows, steps, view.ranks, view.micro_packs) for steps in (view.steps, view.shuffled)]
        for rows in (costs[None], view.costs)
    )
    vision = view.costs[1].sum() / costs.sum()
    spread = f"deviation {costs.std() / costs.mean():.1%}"
    steps_an_epoch = len(costs) / order.global_packs
    return [
        *(
            ("shards", f"{dataset.where}: {counted(len(sidecar), 'pack')} in {counted(len(dataset.shards), 'shard')}")
            for dataset, sidecar in zip(view.sets.datasets, view.sets.sidecars, strict=True)
        ),
        *([("goes on", f"after step {view.step:,}, {counted(view.position, 'pack')}")] if view.step else []),
        ("order", f"{ORDER_VERSION}, seed {order.sets[0].seed}, groups of {order.phase.group}"),
        ("steps", f"{len(view.steps):,} of {counted(order.global_packs, 'pack')}; an epoch has {steps_an_epoch:,.2f}"),
        ("cost of a pack", f"{low:.2f} to {high:.2f} of the mean, {spread}; {vision:.1%} of all is the vision tower"),
        ("plan", ", ".join(dict.fromkeys(dataset.manifest.packing for dataset in view.sets.datasets))),
        ("lost by waiting", f"{once:.2%} on {counted(view.ranks, 'rank')}, {once_random:.2%} in random order"),
        ("  in two waits", f"{twice:.2%}, {twice_random:.2%} in random order: after the vision tower too"),
        ("rank 0 reads", _reads(view)),
        ("mix of sources", _mix(view)),
        ("sources", _shares(view)),
    ]


def _reads(view: "Preview") -> str:
    from lmms.train.plan.preview import rank_reads

    reads = rank_reads(view.sets, view.steps[0], 0, view.ranks, view.micro_packs)
    packs = f"{counted(reads.packs, 'pack')} of {counted(reads.shards, 'shard')}"
    return f"{packs} in step 1, {ui.count(reads.bytes)}B"


def _mix(view: "Preview") -> str:
    from lmms.train.data.sources import design_effects

    if len(view.sources.names) == 1:
        return "one source"
    effects = [f"{effect:.2f} over {length}" for length, effect in design_effects(view.sources, view.steps).items()]
    if not effects:
        return "takes four steps to tell; see --epochs"
    return f"{', '.join(effects)} steps, in units of the variance that random order has"


def _shares(view: "Preview") -> str:
    from lmms.train.plan.preview import source_shares

    shares = dict(zip(view.sources.names, source_shares(view).mean(axis=0).tolist(), strict=True))
    shown = sorted((name for name in shares if shares[name] >= _SHARE_SHOWN), key=lambda name: -shares[name])
    rest = f", and {len(shares) - len(shown)} of less" if len(shown) < len(shares) else ""
    return ", ".join(f"{name} {shares[name]:.1%}" for name in shown) + rest


def _first_steps(view: "Preview") -> Table:
    from lmms.train.plan.preview import step_previews

    table = ui.columns("first steps", "step", "digest", "tokens", "balance", "random", "most tokens")
    for step in islice(step_previews(view), _STEPS_SHOWN):
        source = max(step.sources, key=lambda name: step.sources[name])
        numbers = (f"{step.step}", step.digest, f"{step.tokens:,}", f"{step.balance:.1%}", f"{step.balance_random:.1%}")
        table.add_row(*numbers, f"{step.sources[source]:.0%} {source}")
    return table


def _dear_packs(view: "Preview") -> Table | None:
    """The packs that one sample makes dear; None without such packs."""
    from lmms.train.plan.dear import dear_packs

    names = ("pack", "cost", "its dearest sample", "cost alone", "tokens", "pictures", "equal with max_pixels")
    table = ui.columns("packs dearer than the mean", *names)
    for dear in dear_packs(view.sets, view.order.costs, view.cost):
        sample = f"{Path(dear.source).name} row {dear.row}"
        pixels = f"{dear.max_pixels:,}" if dear.max_pixels else "-"
        numbers = (f"{dear.sample_cost:.2f}", f"{dear.tokens:,}", f"{dear.pictures}", pixels)
        table.add_row(f"{dear.pack}", f"{dear.cost:.2f}", sample, *numbers)
    return table if table.row_count else None


def _losses(view: "Preview") -> Table:
    from lmms.train.data.balance import expected_loss

    names = ("ranks", "packs a rank", "random", "group 1", "group = ranks", "in two waits")
    table = ui.columns("lost by waiting", *names)
    for world in _RANKS:
        for packs_a_rank in _PACKS_A_RANK:
            alone, grouped = (expected_loss(view.order, view.costs, world, packs_a_rank, group) for group in (1, world))
            losses = (alone.random, alone.ordered, grouped.ordered, grouped.ordered_twice)
            table.add_row(f"{world}", f"{packs_a_rank}", *(f"{loss:.2%}" for loss in losses))
    return table
