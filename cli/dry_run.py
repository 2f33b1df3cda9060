"""lmms train --dry-run: memory, length and speed of a run, on one screen."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmms.cli import ui
from lmms.configs.settings.train import TrainConfig
from lmms.configs.words import counted

if TYPE_CHECKING:
    from lmms.train.plan.cards import Card
    from lmms.train.plan.dry_run_result import DryRun

_BAR_WIDTH = 24
_UNEQUAL = 0.01
"""Ranks whose needs differ by less than this share are shown as one rank."""

_FROM_THE_START = " in another output, from the start"


def show(settings: TrainConfig, ranks: int, card: str | None, *, as_json: bool) -> bool:
    """Print the dry run of these settings, for one card or all known cards. Returns whether the run fits on any."""
    with ui.doing("loading torch and transformers"):
        from lmms.train.plan.cards import cards_to_show
        from lmms.train.plan.dry_run import dry_run

    cards = cards_to_show(card)
    out = ui.console()
    with ui.doing("running the heaviest packs through the model, without values"):
        result = dry_run(settings, ranks, cards)
    if as_json:
        typer.echo(json.dumps(to_json(result), indent=1))
    else:
        print_view(out, result)
    return any(result.total <= card.memory for card in cards)


def to_json(result: "DryRun") -> dict[str, object]:
    """The numbers of the view, and the memory of every rank; bytes, tokens, seconds and operations as plain numbers."""
    cards = [
        {**asdict(card), "fits": result.total <= card.memory, "hours": result.hours(card)} for card in result.cards
    ]
    return {**asdict(result), "cards": cards, "total": result.total, "largest": result.largest}


def print_view(out: Console, result: "DryRun") -> None:
    """The view for people."""
    sections = [
        ui.facts("the run", _run_facts(result)),
        _memory(result),
        _cards(result),
        ui.facts("its length", _length_facts(result)),
        *([_proposals(result)] if result.proposals else []),
    ]
    for section in sections:
        out.print(section)
        out.print()
    for line in result.remarks:
        out.print(Text(f"note: {line}", style="yellow"))
    out.print(_verdict(result))


def _run_facts(result: "DryRun") -> list[tuple[str, str]]:
    heaviest = result.heaviest
    parts = ", ".join(
        f"{part} {_millions(number)}" + ("" if part in result.trained else " (frozen)")
        for part, number in result.parameters.items()
    )
    trained = sum(result.trained.values()) / sum(result.parameters.values())
    pictures = f", {counted(heaviest.images, 'image')} of {counted(heaviest.patches, 'patch', 'patches')}"
    sounds = f", {counted(heaviest.sounds, 'sound')} of {counted(heaviest.positions, 'position')}"
    tokens = f"{counted(heaviest.tokens, 'token')}, {counted(heaviest.target_tokens, 'target')}"
    return [
        ("model", f"{Path(result.model).name}, {_millions(sum(result.parameters.values()))} parameters: {parts}"),
        (
            "trained",
            f"{trained:.0%} of them, in {result.precision} by {result.optimizer}, recompute {result.recompute}",
        ),
        ("shards", f"{result.shards:,} with {counted(result.packs, 'pack')}"),
        (
            "step",
            f"{counted(result.global_packs, 'pack')}: {result.passes:,} x {result.micro_packs:,} on {_ranks(result)}",
        ),
        ("heaviest", f"{tokens}{pictures if heaviest.images else ''}{sounds if heaviest.sounds else ''} in a pass"),
        *([("goes on", f"from {result.resumes}")] if result.resumes else []),
    ]


def _millions(number: int) -> str:
    return f"{number / 1e6:,.0f} M" if number >= 1e6 else f"{number:,}"


def _ranks(result: "DryRun") -> str:
    return f"each of {result.ranks:,} ranks" if result.ranks > 1 else "1 rank"


def _memory(result: "DryRun") -> Table:
    """Bytes of each component: of all ranks, or of the two ranks that need most and least."""
    from lmms.train.plan.memory import COMPONENTS

    totals = [sum(components.values()) for components in result.memory]
    most, least = totals.index(max(totals)), totals.index(min(totals))
    shown = [most] if totals[least] > (1 - _UNEQUAL) * totals[most] else [most, least]
    title = "memory of each rank" if len(shown) == 1 else "memory by rank"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2), pad_edge=True)
    table.add_column("", style="dim")
    for rank in shown:
        table.add_column("GB (1e9)" if len(shown) == 1 else f"rank {rank}, GB", justify="right", header_style="dim")
    table.add_column("")
    for name, meaning in COMPONENTS.items():
        size = result.memory[most][name]
        if size or name not in ("vision", "audio", "loss"):
            row = [f"{result.memory[rank][name] / 1e9:.2f}" for rank in shown]
            style = "yellow" if name == result.largest else "cyan"
            table.add_row(
                meaning, *row, Text("█" * round(_BAR_WIDTH * size / result.memory[most][result.largest]), style=style)
            )
    table.add_row("[bold]total[/]", *(f"[bold]{totals[rank] / 1e9:.2f}[/]" for rank in shown))
    return table


def _cards(result: "DryRun") -> Table:
    from lmms.train.plan.dry_run_result import MFU_SUPPOSED

    low, high = MFU_SUPPOSED
    whole_run = f"time of the whole run, if MFU is {high:.0%} to {low:.0%}"
    table = ui.columns("cards", "card", "has, GB", "", "left, GB", whole_run)
    for card in result.cards:
        left = card.memory - result.total
        verdict = Text("fits", "green") if left >= 0 else Text("too small", "red")
        table.add_row(card.name, f"{card.memory / 1e9:.1f}", verdict, f"{left / 1e9:.1f}", _hours(result, card))
    return table


def _hours(result: "DryRun", card: "Card") -> str:
    hours = result.hours(card)
    if result.total > card.memory:
        return ""
    return " to ".join(ui.duration(3600 * each) for each in hours) if hours else "its speed is not known"


def _length_facts(result: "DryRun") -> list[tuple[str, str]]:
    length = result.length
    epochs = length.steps / length.steps_an_epoch
    rows = [
        ("steps", f"{length.steps:,} to go, {epochs:.2f} epochs of {length.steps_an_epoch:,.1f} steps"),
        ("tokens", f"{ui.count(length.tokens_a_step)} a step, {ui.count(length.tokens_an_epoch)} an epoch"),
        ("operations", f"{length.flops_a_step:.3g} a step, {length.flops_an_epoch:.3g} an epoch (strict)"),
        ("checkpoint", f"{result.staged / 1e9:.2f} GB of each rank, in main memory until it is written"),
        ("waiting", f"{result.waiting:.1%} of the time is lost by ranks that wait for the slowest"),
    ]
    if length.tokens_per_s:
        seconds = length.steps * length.tokens_a_step / length.tokens_per_s
        rows.append(("measured", f"{ui.count(length.tokens_per_s)} tokens/s in output: {ui.duration(seconds)} to go"))
    return rows


def _proposals(result: "DryRun") -> Table:
    table = ui.columns("what would change it", "total, GB", "saved, GB", "change")
    for proposal in result.proposals:
        fitting = sorted((card for card in result.cards if proposal.total <= card.memory), key=lambda card: card.memory)
        where, style = "too large", "red"
        if fitting:
            where, style = f"fits {fitting[0].name}" + (" and larger" if len(fitting) > 1 else ""), "green"
        saved = result.total - proposal.total
        text = Text.assemble(
            proposal.change, (_FROM_THE_START if proposal.from_start else "", "yellow"), "  ", (where, style)
        )
        table.add_row(f"{proposal.total / 1e9:.2f}", f"{saved / 1e9:.2f}", text)
    return table


def _verdict(result: "DryRun") -> Text:
    """One line: whether the run fits, its largest component, and the smallest change that would make it fit."""
    from lmms.train.plan.memory import COMPONENTS

    needs = f"{result.total / 1e9:.1f} GB a rank, most of it for {COMPONENTS[result.largest]}"
    short = [card for card in result.cards if result.total > card.memory]
    if not short:
        return Text(f"FITS: {needs}", "bold green")
    if len(short) < len(result.cards):
        fitting = ", ".join(card.name for card in result.cards if card not in short)
        return Text(f"FITS on {fitting}: {needs}", "bold green")
    memory = max(card.memory for card in short)
    enough = [proposal for proposal in result.proposals if proposal.total <= memory]
    advice = "no change here is enough by itself; take several, or build shorter packs"
    for proposal in sorted(enough, key=lambda proposal: proposal.from_start)[:1]:
        advice = f"it would with {proposal.change}" + (_FROM_THE_START if proposal.from_start else "")
    return Text(f"DOES NOT FIT: {needs}; {advice}", "bold red")
