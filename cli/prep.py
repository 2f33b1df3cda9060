"""lmms prep build-shards, plan and store."""

import json
import re
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmms.cli import ui
from lmms.cli.build_words import progress_text, summary
from lmms.cli.settings import ANY_OPTION, WithSwitches, read_settings, with_options
from lmms.configs.help import field_help
from lmms.configs.load import load_config, to_yaml
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.words import counted

if TYPE_CHECKING:
    from rich.table import Table

    from lmms.prep.engine.prune import KeptChunk
    from lmms.prep.outlook import Outlook

_RETRY_S = 10.0
"""Seconds for which a store of shards is asked again."""

app = typer.Typer(no_args_is_help=True, help="Prepare shards: chat records -> pre-tokenized, bin-packed MDS shards.")


@app.callback()
def prep() -> None:
    """Prepare shards."""


@app.command("build-shards", cls=WithSwitches, context_settings=ANY_OPTION)
@with_options(PrepConfig, but=("sources",))
def build_shards(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="SOURCE|KEY=VALUE", help=field_help(PrepConfig)["sources"])
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of the same settings; options win over it.")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved settings and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    **options: str | None,
) -> None:
    """Read chat records, tokenize and pack them, write an MDS shard folder.

    A setting is written as --seq-len 16384 or seq_len=16384.

    Example: lmms prep build-shards data/ --model Qwen/Qwen3-VL-2B-Instruct --seq-len 16384 --out shards/
    """
    sources, overrides = read_settings(words or (), PrepConfig, ("--config", "--print-config", "--quiet"))
    overrides += [f"{name}={value}" for name, value in options.items() if value is not None]
    settings = load_config(PrepConfig, config, overrides, {"sources": tuple(sources)} if sources else {})
    if print_config:
        typer.echo(to_yaml(settings), nl=False)
        return
    from lmms.configs.contract.manifest import SKIPPED, read_manifest
    from lmms.configs.stores.store import open_store
    from lmms.prep.build import build_shards
    from lmms.prep.build_report import REPORT_NAME
    from lmms.prep.engine.cluster import ray_cluster

    screen = ui.console(quiet)
    starts = dict[str, float]()
    try:
        with ExitStack() as stack:
            if settings.engine == "ray":
                screen.print(f"on {stack.enter_context(ray_cluster())}")
            show = stack.enter_context(ui.progress(screen))
            manifest = build_shards(
                settings,
                lambda p: show(
                    p.stage, p.done, p.total, progress_text(p, starts.setdefault(p.stage, time.monotonic()))
                ),
            )
    except KeyboardInterrupt:
        kept = settings.store_folder if settings.store_folder and settings.store_folder.is_dir() else None
        goes_on = f"what was read is kept in {kept}: the same command goes on" if kept else "what was begun is removed"
        ui.error_console().print(f"stopped: there is nothing at {settings.out}, and {goes_on}")
        raise typer.Exit(130) from None
    held_out = None
    if SKIPPED + "evaluation" in manifest.notes:
        held_out = read_manifest(open_store(settings.eval_place, _RETRY_S))
    report = json.loads(open_store(settings.out, _RETRY_S).read(REPORT_NAME))
    for table in summary(settings, manifest, held_out, report):
        screen.print(table)


@app.command("plan", cls=WithSwitches, context_settings=ANY_OPTION)
@with_options(
    PrepConfig, but=("sources", "seq_len", "out", "work", "engine", "eval_out", "store", "plan", "shard_bytes")
)
def plan(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="SOURCE|KEY=VALUE", help=field_help(PrepConfig)["sources"])
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of the settings of a build; options win.")] = None,
    seq_len: Annotated[
        str | None, typer.Option(metavar="N[,N...]", help="Tokens of a pack; several lengths are compared.")
    ] = None,
    sample: Annotated[str, typer.Option(metavar="SHARE", help="Rows to read, of each chunk: 1%, 0.05, all.")] = "all",
    ranks: Annotated[str, typer.Option(metavar="N[,N...]", help="Ranks for which the balance is shown.")] = "8,64,512",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    **options: str | None,
) -> None:
    """Show what a build would make of its sources: lengths, packs, balance, rejects, time. Nothing is written.

    Example: lmms prep plan data/ --model Qwen/Qwen3-VL-2B-Instruct --seq-len 4096,16384 --sample 1%
    """
    of_command = ("--config", "--seq-len", "--sample", "--ranks", "--json")
    sources, overrides = read_settings(words or (), PrepConfig, of_command)
    overrides += [f"{name}={value}" for name, value in options.items() if value is not None]
    overrides += [
        "out=nothing-is-written",
        "work=null",
        *([f"seq_len={_numbers(seq_len, '--seq-len')[-1]}"] if seq_len else []),
    ]
    settings = load_config(PrepConfig, config, overrides, {"sources": tuple(sources)} if sources else {})
    lengths = _numbers(seq_len, "--seq-len") if seq_len else [settings.seq_len]
    from lmms.prep.outlook import look_ahead

    screen = ui.console(quiet=as_json)
    starts = dict[str, float]()
    with ui.progress(screen) as show:
        outlook = look_ahead(
            settings,
            lengths,
            ranks=_numbers(ranks, "--ranks"),
            share=_share(sample),
            report=lambda p: show(
                p.stage, p.done, p.total, progress_text(p, starts.setdefault(p.stage, time.monotonic()))
            ),
        )
    if as_json:
        typer.echo(json.dumps({**asdict(outlook), "lengths": outlook.lengths.tolist()}))
        return
    for table in _outlook_tables(outlook, settings):
        screen.print(table)


def _media_words(outlook: "Outlook") -> str:
    patches = f", {counted(outlook.patches, 'patch', 'patches')}" if outlook.patches else ""
    return f"{outlook.media:,} images, rows of videos, and sounds{patches}"


def _outlook_tables(outlook: "Outlook", settings: PrepConfig) -> "Iterator[Table]":
    read = f"{outlook.read:,} rows" + (f", {outlook.share:.1%} of all" if outlook.share < 1 else "")
    tokens = int(outlook.lengths.sum())
    rows = [
        ("read", read),
        *((f"  {reason}", f"{counted(n, 'record')} rejected") for reason, n in outlook.rejects.items()),
        ("samples", f"{len(outlook.lengths):,} of {tokens:,} tokens, {outlook.target_tokens / tokens:.1%} targets"),
        *([("media", _media_words(outlook))] if outlook.media else []),
        ("shards", f"about {ui.count(outlook.bytes)}B, written in about {ui.duration(outlook.seconds)}"),
    ]
    yield ui.facts("plan", rows)
    if outlook.frame_choices:
        yield _frames_table(outlook, settings)
    yield ui.histogram("tokens of a sample", outlook.lengths)
    ranks = list(outlook.packings[0].waiting)
    title = (
        f"packs, and the time that {', '.join(map(str, ranks))} ranks lose by waiting for the dearest pack of a step"
    )
    names = ("tokens", "plan", "packs", "full", "too long", "deviation", *(f"{count} ranks" for count in ranks))
    table = ui.columns(title, *names)
    for packing in outlook.packings:
        waits = [f"{packing.waiting[count]:.1%}" for count in ranks]
        cells = [f"{packing.seq_len:,}", packing.plan, f"{packing.packs:,}", f"{packing.fill:.2%}"]
        table.add_row(*cells, f"{packing.too_long:,}", f"{packing.deviation:.3f}", *waits)
    yield table
    longest = max(packing.seq_len for packing in outlook.packings)
    sources = " ".join(source.path for source in settings.source_configs) or "SOURCES"
    build = f"lmms prep build-shards {sources} --model {settings.model} --seq-len {longest} --out DIR"
    yield ui.facts("next", [("", build)])


def _frames_table(outlook: "Outlook", settings: PrepConfig) -> "Table":
    title = f"frames of videos by each choice, as {counted(outlook.measured_videos, 'video')} tell"
    table = ui.columns(title, "frames", "shards", "video_frames", "video_encoding")
    for choice in outlook.frame_choices:
        is_set = (choice.video_frames, choice.video_encoding) == (settings.video_frames, settings.video_encoding)
        quality = f" of video_quality {settings.video_quality}" if choice.video_encoding == "jpeg" else ""
        sizes = [f"{ui.count(size)}B" for size in (choice.frames, choice.shards)]
        table.add_row(*sizes, choice.video_frames, f"{choice.video_encoding}{quality}{', as set' * is_set}")
    return table


def _numbers(text: str, option: str) -> list[int]:
    """Whole numbers above 0, rising. Raises BadParameter."""
    words = [word.strip().replace("_", "") for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise typer.BadParameter(f"{text!r}; expected whole numbers above 0 such as 4096,16384", param_hint=option)
    return sorted({int(word) for word in words})


def _share(text: str) -> float:
    """The share of rows. Raises BadParameter."""
    match = re.fullmatch(r"([0-9.]+)(%?)", text)
    with suppress(ValueError):
        share = 1.0 if text == "all" else float(match[1]) / (100 if match[2] else 1) if match else 0.0
        if 0 < share <= 1:
            return share
    raise typer.BadParameter(f"{text!r}; expected a share such as 1%, 0.05 or all", param_hint="--sample")


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@app.command("store")
def store(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the setting `store` of builds.")],
    older_than: Annotated[
        str | None, typer.Option(metavar="TIME", help="Delete what no build used for so long: 30d, 12h.")
    ] = None,
    larger_than: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Delete the longest unused beyond this size: 500GB.")
    ] = None,
) -> None:
    """Show what is kept of builds in a store, and delete what is old or too much.

    Example: lmms prep store kept/ --older-than 30d --larger-than 500GB
    """
    from lmms.prep.engine.prune import delete, kept_chunks, to_delete

    now = time.time()
    before = None if older_than is None else now - _quantity(older_than, "--older-than", "smhd", "30d")
    sizes = ("KB", "MB", "GB", "TB")
    most = None if larger_than is None else int(_quantity(larger_than, "--larger-than", sizes, "500GB"))
    chunks = kept_chunks(folder)
    deleted = to_delete(chunks, before, most)
    delete(folder, deleted)
    left = [chunk for chunk in chunks if chunk not in deleted]
    rows = [("folder", str(folder)), ("kept", _chunks_text(left))]
    if left:
        ages = [ui.duration(now - chunk.used) for chunk in (left[-1], left[0])]
        rows.append(("last used", f"{ages[0]} to {ages[1]} ago"))
    if older_than or larger_than:
        rows.append(("deleted", _chunks_text(deleted)))
    ui.console().print(ui.facts("store", rows))


def _chunks_text(chunks: "list[KeptChunk]") -> str:
    return f"{counted(len(chunks), 'chunk')}, {ui.count(sum(chunk.bytes for chunk in chunks))}B"


def _quantity(text: str, option: str, units: Collection[str], example: str) -> float:
    """Seconds or bytes. Raises BadParameter."""
    match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]+)", text)
    try:
        if match and match[2] in units:
            return float(match[1]) * _UNITS[match[2]]
    except ValueError:
        pass
    raise typer.BadParameter(
        f"{text!r}; expected a number and one of {', '.join(units)}, such as {example}", param_hint=option
    )
