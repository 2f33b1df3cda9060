"""lmms inspect step: the records of a step that was trained."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lmms.cli import ui
from lmms.configs.words import counted, short_places

_RECORDS_SHOWN = 40


def step(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Output folder of `lmms train`.")],
    number: Annotated[int, typer.Argument(metavar="T", help="Step, counted from 1 as in metrics.jsonl.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a record, nothing else.")] = False,
) -> None:
    """Name the records that a step of a run trained on. An error if its shards are not those it trained on.

    Example: lmms inspect step runs/first 10
    """
    from lmms.train.watch.records import records_of

    found = records_of(run, number)
    if as_json:
        for record in found.records:
            typer.echo(json.dumps({**asdict(record), "shards": found.shards[record.set]}, ensure_ascii=False))
        return
    screen = ui.console()
    checked = "as metrics.jsonl has it" if found.is_logged else "metrics.jsonl has no line of this step to compare"
    tokens = sum(record.tokens for record in found.records)
    rows = [
        ("packs", f"{found.packs:,}, after {counted(found.position, 'other')}"),
        ("records", f"{len(found.records):,} of {counted(tokens, 'token')}"),
        ("digest", f"{found.digest}, {checked}"),
        *((f"set {k}", where) for k, where in enumerate(found.shards)),
    ]
    screen.print(ui.facts(f"step {number} of {run}", rows))
    places = list(dict.fromkeys(record.source for record in found.records))
    names = dict(zip(places, short_places(places), strict=True))
    table = ui.columns("records", "set", "pack", "segment", "tokens", "row", "source")
    for record in found.records[:_RECORDS_SHOWN]:
        numbers = (record.set, record.pack, record.segment, record.tokens, record.row)
        table.add_row(*(f"{value:,}" for value in numbers), names[record.source])
    screen.print(table)
    if len(found.records) > _RECORDS_SHOWN:
        screen.print(f"... and {len(found.records) - _RECORDS_SHOWN:,} more; --json prints all")
