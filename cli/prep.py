"""lmms prep build-shards."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lmms.cli import ui
from lmms.configs.help import field_help
from lmms.configs.load import load_config, to_yaml
from lmms.configs.settings.prep import PrepConfig

if TYPE_CHECKING:
    from lmms.configs.contract.manifest import Manifest
    from lmms.prep.build import Progress

_HELP = field_help(PrepConfig)

app = typer.Typer(no_args_is_help=True, help="Prepare shards: chat records -> pre-tokenized, bin-packed MDS shards.")


@app.callback()
def prep() -> None:
    """Prepare shards."""


@app.command("build-shards")
def build_shards(
    sources: Annotated[list[str] | None, typer.Argument(metavar="SOURCE...", help=_HELP["sources"])] = None,
    model: Annotated[str | None, typer.Option(help=_HELP["model"], metavar="DIR_OR_ID")] = None,
    seq_len: Annotated[int | None, typer.Option(help=_HELP["seq_len"])] = None,
    out: Annotated[str | None, typer.Option(help=_HELP["out"], metavar="DIR")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of the same settings; options win over it.")] = None,
    media_root: Annotated[str | None, typer.Option(help=_HELP["media_root"], metavar="DIR")] = None,
    min_pixels: Annotated[int | None, typer.Option(help=_HELP["min_pixels"])] = None,
    max_pixels: Annotated[int | None, typer.Option(help=_HELP["max_pixels"])] = None,
    max_patches: Annotated[int | None, typer.Option(help=_HELP["max_patches"])] = None,
    verify_media: Annotated[
        Literal["header", "structure", "decode"] | None, typer.Option(help=_HELP["verify_media"])
    ] = None,
    max_image_pixels: Annotated[int | None, typer.Option(help=_HELP["max_image_pixels"])] = None,
    max_rejects: Annotated[float | None, typer.Option(help=_HELP["max_rejects"])] = None,
    seed: Annotated[int | None, typer.Option(help=_HELP["seed"])] = None,
    shard_bytes: Annotated[int | None, typer.Option(help=_HELP["shard_bytes"])] = None,
    workers: Annotated[int | None, typer.Option(help=_HELP["workers"])] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved settings and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Read chat records, tokenize and pack them, write an MDS shard folder.

    Example: lmms prep build-shards data/ --model Qwen/Qwen3-VL-2B-Instruct --seq-len 16384 --out shards/
    """
    options: dict[str, Any] = {
        "sources": tuple(sources) if sources else None,
        "model": model,
        "seq_len": seq_len,
        "out": out,
        "media_root": media_root,
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "max_patches": max_patches,
        "verify_media": verify_media,
        "max_image_pixels": max_image_pixels,
        "max_rejects": max_rejects,
        "seed": seed,
        "shard_bytes": shard_bytes,
        "workers": workers,
    }
    values = {name: value for name, value in options.items() if value is not None}
    settings = load_config(PrepConfig, config, values=values)
    if print_config:
        typer.echo(to_yaml(settings), nl=False)
        return
    from lmms.prep.build import build_shards

    screen = ui.console(quiet)
    start = time.monotonic()
    with ui.progress(screen) as show:
        manifest = build_shards(settings, lambda p: show(p.stage, p.done, p.total, _progress_text(p, start)))
    screen.print(_summary(settings.out, manifest, time.monotonic() - start))


def _progress_text(progress: "Progress", start: float) -> str:
    if progress.stage == "writing":
        return f"{ui.count(progress.total)} packs"
    rate = progress.records / max(time.monotonic() - start, 1e-9)
    rejected = f", {ui.count(progress.rejected)} rejected" if progress.rejected else ""
    return f"{ui.count(progress.records)} records, {ui.count(progress.tokens)} tokens, {ui.count(rate)}/s{rejected}"


def _summary(out: str, manifest: "Manifest", seconds: float) -> Any:
    counts = manifest.counts
    rows = [
        (
            "records",
            f"{counts['read']:,} read = {counts['packed']:,} packed + {counts['rejected']:,} rejected"
            f" + {counts['skipped']:,} skipped",
        ),
        *((f"  {reason}", f"{number:,} rejected") for reason, number in manifest.rejects.items()),
        *((f"  {note}", f"not used, in {number:,} records") for note, number in manifest.notes.items()),
        ("packs", f"{counts['packs']:,} of {manifest.seq_len:,} tokens, {manifest.fill:.2%} full"),
        ("tokens", f"{counts['tokens']:,}, {counts['target_tokens'] / counts['tokens']:.1%} of them targets"),
        ("images", f"{counts['media']:,}, {counts['patches']:,} patches"),
        (
            "time",
            f"{ui.duration(seconds)}, {ui.count(counts['read'] / seconds)} records/s,"
            f" {ui.count(counts['tokens'] / seconds)} tokens/s",
        ),
    ]
    return ui.facts(out, rows)
