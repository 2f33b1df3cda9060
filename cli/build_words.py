"""What `lmms prep build-shards` says of a build: how far it is, and at the end what became of its records."""

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lmms.cli import ui
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.words import counted, short_places

if TYPE_CHECKING:
    from rich.table import Table

    from lmms.configs.contract.manifest import Manifest
    from lmms.prep.progress import Progress

_MOST_SOURCES = 20
"""Sources that have a row of the closing table."""


def progress_text(progress: "Progress", start: float) -> str:
    """How far a build is, beside its bar. start: when the stage began, of time.monotonic."""
    if progress.stage == "copying":
        return f"{progress.done / 1e6:,.1f} MB of sources behind URLs"
    if progress.stage == "planning":
        return counted(progress.records, "sample")
    seconds = max(time.monotonic() - start, 1e-9)
    if progress.stage == "writing":
        return f"{counted(progress.total, 'pack')}, {ui.count(progress.done / seconds)}/s"
    rejected = f", {ui.count(progress.rejected)} rejected" if progress.rejected else ""
    rate = ui.count(progress.records / seconds)
    return f"{ui.count(progress.records)} records, {ui.count(progress.tokens)} tokens, {rate}/s{rejected}"


def summary(
    settings: PrepConfig, manifest: "Manifest", held_out: "Manifest | None", report: Mapping[str, Any]
) -> "Iterator[Table]":
    """The closing tables. held_out: of the folder for evaluation, if there is one. report: of build-report.json."""
    from lmms.configs.contract.manifest import NOT_READ, SKIPPED
    from lmms.prep.build_report import REPORT_NAME
    from lmms.prep.rows.find import unread_text

    out, counts = settings.out, manifest.counts
    cut_turns = sum(source["cut_turns"] for source in manifest.sources)
    evaluated = f" eval.shards={settings.eval_place}" if held_out else ""
    unread = {note.removeprefix(NOT_READ): n for note, n in manifest.notes.items() if note.startswith(NOT_READ)}
    skips = {note.removeprefix(SKIPPED): n for note, n in manifest.notes.items() if note.startswith(SKIPPED)}
    used_notes = {note: n for note, n in manifest.notes.items() if not note.startswith((NOT_READ, SKIPPED))}
    rows = [
        (
            "records",
            f"{counts['read']:,} read = {counts['packed']:,} packed + {counts['rejected']:,} rejected"
            f" + {counts['skipped']:,} skipped",
        ),
        *((f"  {reason}", f"{number:,} rejected") for reason, number in manifest.rejects.items()),
        *((f"  {setting}", f"{number:,} skipped") for setting, number in skips.items()),
        *((f"  {note}", f"not used, in {counted(number, 'record')}") for note, number in used_notes.items()),
        *([("not read", unread_text(unread))] if unread else []),
        *_forms(manifest),
        *(
            [("samples", f"{counts['samples']:,} of the packed records")]
            if counts["samples"] != counts["packed"]
            else []
        ),
        *_duplicates(counts, settings.duplicates),
        *([("cut off", f"{counted(cut_turns, 'turn')} at the end of long conversations")] if cut_turns else []),
        ("packs", f"{counts['packs']:,} of {manifest.seq_len:,} tokens, {manifest.fill:.2%} full"),
        ("tokens", f"{counts['tokens']:,}, {counts['target_tokens'] / counts['tokens']:.1%} of them targets"),
        *ui.media_rows(counts),
        *_work(counts, report),
        *([("evaluation", _held_out_text(settings.eval_place, held_out))] if held_out else []),
        ("report", f"{REPORT_NAME} in the same folder: each source, seconds, versions"),
        ("next", f"lmms inspect shard {out} --pack 0, or lmms train with data.shards={out}{evaluated}"),
    ]
    if len(report["sources"]) > 1:
        yield _sources(report["sources"])
    yield ui.facts(out, rows)


def _work(counts: Mapping[str, int], report: Mapping[str, Any]) -> "Iterator[tuple[str, str]]":
    """Rows about what the build took."""
    work, seconds = report["work"], max(sum(report["seconds"].values()), 1e-9)
    stages = ", ".join(f"{name} {ui.duration(took)}" for name, took in report["seconds"].items() if took >= 0.5)
    rates = f"{ui.count(counts['read'] / seconds)} records/s, {ui.count(counts['tokens'] / seconds)} tokens/s"
    yield "time", f"{ui.duration(seconds)}{f' ({stages})' if stages else ''}, {rates}"
    used = f"{report['cpu_seconds']:,.1f} s of CPU time, {counted(report['workers'], 'worker')}"
    yield "used", f"{used}, {ui.count(report['peak_bytes'])}B of memory in the largest process"
    if work["kept"]:
        yield "kept before", f"{work['kept']:,} of {counted(work['chunks'], 'chunk')}: not read again"
    if laid_out := work["by_outline"] + work["by_template"]:
        known = (
            f"; {work['by_outline'] / laid_out:.1%} by the known outline of the template" if work["by_outline"] else ""
        )
        yield "rendered", f"{counted(laid_out, 'conversation')}{known}"
    if work["tokenizers"]:
        yield "tokenizer", "; ".join(work["tokenizers"])


def _sources(sources: "list[dict[str, Any]]") -> "Table":
    """A row for each source."""
    table = ui.columns("sources", "read", "packed", "rejected", "tokens", "worker time", "source")
    shown = sorted(sources, key=lambda source: -source["tokens"])[:_MOST_SOURCES]
    for source, name in zip(shown, short_places([source["name"] for source in shown]), strict=True):
        busy = sum(value for key, value in source["work"].items() if key.endswith("_s"))
        counts = [f"{source[key]:,}" for key in ("read", "packed", "rejected")]
        table.add_row(*counts, ui.count(source["tokens"]), ui.duration(busy), name)
    if len(sources) > len(shown):
        table.add_row("", "", "", "", "", f"and {len(sources) - len(shown):,} more with fewer tokens")
    return table


def _duplicates(counts: dict[str, int], setting: str) -> list[tuple[str, str]]:
    """A row about records that equal an earlier record, if there are any and they are packed."""
    if not counts["duplicates"] or setting == "drop":
        return []
    equal = counted(counts["duplicates"], "record")
    return [("duplicates", f"{equal} equal to an earlier one, packed all the same; duplicates=drop leaves them out")]


def _held_out_text(folder: str, manifest: "Manifest") -> str:
    counts = manifest.counts
    packs = counted(counts["packs"], "pack")
    return f"{folder}: {counted(counts['packed'], 'record')} in {packs}, {counts['tokens']:,} tokens"


def _forms(manifest: "Manifest") -> list[tuple[str, str]]:
    """A row for each form, with the sources that were read so."""
    names: dict[str, list[str]] = {}
    for source in manifest.sources:
        names.setdefault(source["form"], []).append(source["name"])
    return [(f"form {form}", _shortened(sources)) for form, sources in names.items()]


def _shortened(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
