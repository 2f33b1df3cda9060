"""lmms train --dry-run: what a run would need and how long it would be, on one screen."""

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
    from lmms.train.plan.dry_run import DryRun

_BAR_WIDTH = 24
_UNEQUAL = 0.01
"""Ranks whose needs differ by less than this share are shown as one."""

_ANEW = " in another output, from the start"


def show(settings: TrainConfig, ranks: int, card: str | None, *, as_json: bool) -> bool:
    """Print the dry run of these settings on so many ranks, against a card or all known ones: does it fit on any?"""
    from lmms.train.plan.cards import cards_to_show
    from lmms.train.plan.dry_run import dry_run

    cards = cards_to_show(card)
    out = ui.console()
    found = dry_run(settings, ranks, cards)
    if as_json:
        typer.echo(json.dumps(to_json(found), indent=1))
    else:
        print_view(out, found)
    return any(found.total <= card.memory for card in cards)


def to_json(found: "DryRun") -> dict[str, object]:
    """What the view says, and every rank's memory; bytes, tokens, seconds and operations as plain numbers."""
    cards = [{**asdict(card), "fits": found.total <= card.memory, "hours": found.hours(card)} for card in found.cards]
    return {**asdict(found), "cards": cards, "total": found.total, "largest": found.largest}


def print_view(out: Console, found: "DryRun") -> None:
    """The view for people."""
    sections = [
        ui.facts("the run", _run_facts(found)),
        _memory(found),
        _cards(found),
        ui.facts("its length", _length_facts(found)),
        *([_proposals(found)] if found.proposals else []),
    ]
    for section in sections:
        out.print(section)
        out.print()
    for line in found.remarks:
        out.print(Text(f"note: {line}", style="yellow"))
    out.print(_verdict(found))


def _run_facts(found: "DryRun") -> list[tuple[str, str]]:
    heaviest = found.heaviest
    parts = ", ".join(
        f"{part} {_millions(number)}" + ("" if part in found.trained else " (frozen)")
        for part, number in found.parameters.items()
    )
    trained = sum(found.trained.values()) / sum(found.parameters.values())
    pictures = f", {counted(heaviest.images, 'image')} of {counted(heaviest.patches, 'patch', 'patches')}"
    tokens = f"{counted(heaviest.tokens, 'token')}, {counted(heaviest.target_tokens, 'target')}"
    return [
        ("model", f"{Path(found.model).name}, {_millions(sum(found.parameters.values()))} parameters: {parts}"),
        ("trained", f"{trained:.0%} of them, in {found.precision} by {found.optimizer}, recompute {found.recompute}"),
        ("shards", f"{found.shards:,} with {counted(found.packs, 'pack')}"),
        ("step", f"{counted(found.global_packs, 'pack')}: {found.passes:,} x {found.micro_packs:,} on {_ranks(found)}"),
        ("heaviest", f"{tokens}{pictures if heaviest.images else ''} in a pass"),
        *([("goes on", f"from {found.resumes}")] if found.resumes else []),
    ]


def _millions(number: int) -> str:
    return f"{number / 1e6:,.0f} M" if number >= 1e6 else f"{number:,}"


def _ranks(found: "DryRun") -> str:
    return f"each of {found.ranks:,} ranks" if found.ranks > 1 else "1 rank"


def _memory(found: "DryRun") -> Table:
    """Components with their bytes: of all ranks, or of those that need most and least."""
    from lmms.train.plan.memory import COMPONENTS

    totals = [sum(components.values()) for components in found.memory]
    most, least = totals.index(max(totals)), totals.index(min(totals))
    shown = [most] if totals[least] > (1 - _UNEQUAL) * totals[most] else [most, least]
    title = "memory of each rank" if len(shown) == 1 else "memory by rank"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2), pad_edge=True)
    table.add_column("", style="dim")
    for rank in shown:
        table.add_column("GB (1e9)" if len(shown) == 1 else f"rank {rank}, GB", justify="right", header_style="dim")
    table.add_column("")
    for name, meaning in COMPONENTS.items():
        size = found.memory[most][name]
        if size or name not in ("vision", "loss"):
            row = [f"{found.memory[rank][name] / 1e9:.2f}" for rank in shown]
            style = "yellow" if name == found.largest else "cyan"
            table.add_row(
                meaning, *row, Text("█" * round(_BAR_WIDTH * size / found.memory[most][found.largest]), style=style)
            )
    table.add_row("[bold]total[/]", *(f"[bold]{totals[rank] / 1e9:.2f}[/]" for rank in shown))
    return table


def _cards(found: "DryRun") -> Table:
    from lmms.train.plan.dry_run import MFU_SUPPOSED

    low, high = MFU_SUPPOSED
    whole_run = f"time of the whole run, if MFU is {high:.0%} to {low:.0%}"
    table = ui.columns("cards", "card", "has, GB", "", "left, GB", whole_run)
    for card in found.cards:
        left = card.memory - found.total
        verdict = Text("fits", "green") if left >= 0 else Text("too small", "red")
        table.add_row(card.name, f"{card.memory / 1e9:.1f}", verdict, f"{left / 1e9:.1f}", _hours(found, card))
    return table


def _hours(found: "DryRun", card: "Card") -> str:
    hours = found.hours(card)
    if found.total > card.memory:
        return ""
    return " to ".join(ui.duration(3600 * each) for each in hours) if hours else "its speed is not known"


def _length_facts(found: "DryRun") -> list[tuple[str, str]]:
    length = found.length
    epochs = length.steps / length.steps_an_epoch
    rows = [
        ("steps", f"{length.steps:,} to go, {epochs:.2f} epochs of {length.steps_an_epoch:,.1f} steps"),
        ("tokens", f"{ui.count(length.tokens_a_step)} a step, {ui.count(length.tokens_an_epoch)} an epoch"),
        ("operations", f"{length.flops_a_step:.3g} a step, {length.flops_an_epoch:.3g} an epoch (strict)"),
        ("checkpoint", f"{found.staged / 1e9:.2f} GB of each rank, in main memory until it is written"),
        ("waiting", f"{found.waiting:.1%} of the time is lost by ranks that wait for the slowest"),
    ]
    if length.tokens_per_s:
        seconds = length.steps * length.tokens_a_step / length.tokens_per_s
        rows.append(("measured", f"{ui.count(length.tokens_per_s)} tokens/s in output: {ui.duration(seconds)} to go"))
    return rows


def _proposals(found: "DryRun") -> Table:
    table = ui.columns("what would change it", "total, GB", "saved, GB", "change")
    for proposal in found.proposals:
        fitting = sorted((card for card in found.cards if proposal.total <= card.memory), key=lambda card: card.memory)
        where, style = "too large", "red"
        if fitting:
            where, style = f"fits {fitting[0].name}" + (" and larger" if len(fitting) > 1 else ""), "green"
        saved = found.total - proposal.total
        text = Text.assemble(proposal.change, (_ANEW if proposal.anew else "", "yellow"), "  ", (where, style))
        table.add_row(f"{proposal.total / 1e9:.2f}", f"{saved / 1e9:.2f}", text)
    return table


def _verdict(found: "DryRun") -> Text:
    """One line: whether it fits, what is largest, and the mildest change that would make it fit."""
    from lmms.train.plan.memory import COMPONENTS

    needs = f"{found.total / 1e9:.1f} GB a rank, most of it for {COMPONENTS[found.largest]}"
    short = [card for card in found.cards if found.total > card.memory]
    if not short:
        return Text(f"FITS: {needs}", "bold green")
    if len(short) < len(found.cards):
        fitting = ", ".join(card.name for card in found.cards if card not in short)
        return Text(f"FITS on {fitting}: {needs}", "bold green")
    memory = max(card.memory for card in short)
    enough = [proposal for proposal in found.proposals if proposal.total <= memory]
    advice = "no change here is enough by itself; take several, or build shorter packs"
    for proposal in sorted(enough, key=lambda one: one.anew)[:1]:
        advice = f"it would with {proposal.change}" + (_ANEW if proposal.anew else "")
    return Text(f"DOES NOT FIT: {needs}; {advice}", "bold red")
