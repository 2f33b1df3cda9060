"""lmms inspect step: the records of a step that was trained."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lmms.cli import ui
from lmms.configs.words import counted

_RECORDS_SHOWN = 40


def step(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Output folder of `lmms train`.")],
    number: Annotated[int, typer.Argument(metavar="T", help="Step, counted from 1 as in metrics.jsonl.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a record, nothing else.")] = False,
) -> None:
    """Name the records that a step of a run trained on. An error if the run trained on other shards.

    Example: lmms inspect step runs/first 10
    """
    from lmms.train.watch.records import records_of

    step_records = records_of(run, number)
    if as_json:
        for record in step_records.records:
            typer.echo(json.dumps({**asdict(record), "shards": step_records.shards[record.set]}, ensure_ascii=False))
        return
    screen = ui.console()
    checked = (
        "as metrics.jsonl has it" if step_records.is_logged else "metrics.jsonl has no line of this step to compare"
    )
    tokens = sum(record.tokens for record in step_records.records)
    rows = [
        ("packs", f"{step_records.packs:,}, after {counted(step_records.position, 'other')}"),
        ("records", f"{len(step_records.records):,} of {counted(tokens, 'token')}"),
        ("digest", f"{step_records.digest}, {checked}"),
        *((f"set {k}", where) for k, where in enumerate(step_records.shards)),
    ]
    screen.print(ui.facts(f"step {number} of {run}", rows))
    table = ui.columns("records", "set", "pack", "segment", "tokens", "row", "source")
    for record in step_records.records[:_RECORDS_SHOWN]:
        numbers = (record.set, record.pack, record.segment, record.tokens, record.row)
        table.add_row(*(f"{value:,}" for value in numbers), record.name)
    screen.print(table)
    if len(step_records.records) > _RECORDS_SHOWN:
        screen.print(f"... and {len(step_records.records) - _RECORDS_SHOWN:,} more; --json prints all")
