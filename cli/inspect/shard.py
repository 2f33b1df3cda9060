"""lmms inspect: the content of a shard folder, as the model will read it."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from lmms.cli import ui
from lmms.configs.errors import DatasetError
from lmms.configs.words import counted, short_places

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from lmms.configs.contract.manifest import Dataset, Manifest
    from lmms.configs.contract.pack import Pack
    from lmms.train.data.shards import Sidecar

_PREVIEW = 1200
"""Characters of a conversation that are shown, unless the user named the pack."""
_FAULTS_SHOWN = 20
_STYLES = {"prompt": "", "target": "bold green", "weight": "bold yellow", "media": "bold cyan"}
"""Kind of a piece of a conversation -> its style."""

app = typer.Typer(no_args_is_help=True, help="Look into shards: totals, packs as text, a full check.")

Folder = Annotated[str, typer.Argument(metavar="DIR", help="Folder that `lmms prep build-shards` wrote, or its URL.")]


@app.command()
def shard(
    folder: Folder,
    pack: Annotated[int | None, typer.Option(help="Show this pack, whole; by default the first, shortened.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a pack, nothing else.")] = False,
    model: Annotated[
        str | None, typer.Option(metavar="DIR_OR_ID", help="Model with the tokenizer, if the build's model has moved.")
    ] = None,
) -> None:
    """Show totals and histograms, then packs as decoded text with the targets in colour.

    Example: lmms inspect shard shards/ --pack 3
    """
    from lmms.configs.contract.manifest import open_dataset
    from lmms.train.data.shards import PackReader, read_sidecar
    from lmms.train.data.view import pack_json

    dataset = open_dataset(folder)
    sidecar = read_sidecar(dataset)
    reader = PackReader([dataset])
    if as_json:
        for i in range(len(sidecar)) if pack is None else [pack]:
            typer.echo(json.dumps(pack_json(i, reader.read(sidecar.place(i)), dataset.manifest), ensure_ascii=False))
        return
    screen = ui.console()
    if pack is None:
        _show_totals(screen, dataset, sidecar)
    shown = reader.read(sidecar.place(pack or 0))
    _show_pack(screen, pack or 0, shown, dataset, _tokenizer(dataset.manifest, model), pack is None)


@app.command()
def verify(folder: Folder) -> None:
    """Check every file, pack and row against its hash, the contract and the manifest.

    Example: lmms inspect verify shards/
    """
    from lmms.train.data.verify import verify

    screen = ui.console()
    with ui.progress(screen, "packs") as show:
        faults = list(verify(folder, lambda done, packs: show("checking", done, packs, "")))
    if faults:
        more = [f"... and {len(faults) - _FAULTS_SHOWN} more"] if len(faults) > _FAULTS_SHOWN else []
        raise DatasetError("\n".join([f"{folder} is damaged:", *faults[:_FAULTS_SHOWN], *more]))
    screen.print(f"{folder} is whole; next: `lmms train` with data.shards={folder}", soft_wrap=True)


def _tokenizer(manifest: "Manifest", model: str | None) -> "Tokenizer":
    from tokenizers import Tokenizer

    from lmms.configs.contract.model_folder import PREP_FILES, read_model_folder, resolve_model

    folder = read_model_folder(resolve_model(model or manifest.model, PREP_FILES))
    if folder.tokenizer_fingerprint != manifest.fingerprints["tokenizer"]:
        raise DatasetError(
            f"{folder.path}: its tokenizer is not the one of these shards; name the right one with --model"
        )
    return Tokenizer.from_file(str(folder.tokenizer_json))


def _show_totals(screen: Console, dataset: "Dataset", sidecar: "Sidecar") -> None:
    from lmms.configs.contract.manifest import SAMPLES_NAME
    from lmms.train.data.shards import read_table

    manifest, counts = dataset.manifest, dataset.manifest.counts
    rows = [
        ("model", f"{manifest.model} ({manifest.family})"),
        ("records", f"{counts['packed']:,} packed, {counts['rejected']:,} rejected, {counts['skipped']:,} skipped"),
        ("packs", f"{counts['packs']:,} of {manifest.seq_len:,} tokens in {counted(len(dataset.shards), 'shard')}"),
        ("tokens", f"{counts['tokens']:,}, {counts['target_tokens']:,} targets{_mean_weight(sidecar)}"),
        *ui.media_rows(counts),
        *(
            ("source", f"{s['name']}: {counted(s['packed'], 'record')}, {counted(s['tokens'], 'token')}")
            for s in manifest.sources
        ),
    ]
    screen.print(ui.facts(dataset.where, rows))
    lengths = read_table(dataset, SAMPLES_NAME)["tokens"].to_numpy()
    screen.print(ui.histogram("tokens a conversation", lengths[lengths > 0]))
    screen.print(ui.histogram("fill of a pack, %", 100 * sidecar.tokens / manifest.seq_len))
    screen.print(ui.histogram("target tokens of a pack, %", 100 * sidecar.target_tokens / sidecar.tokens))
    if counts["media"]:
        screen.print(ui.histogram("media a pack" if "sounds" in counts else "images a pack", sidecar.media))


def _mean_weight(sidecar: "Sidecar") -> str:
    mean = float(sidecar.target_weight.sum()) / int(sidecar.target_tokens.sum())
    return "" if mean == 1 else f" of mean weight {mean:.4g}"


def _show_pack(
    screen: Console, number: int, pack: "Pack", dataset: "Dataset", tokenizer: "Tokenizer", shorten: bool
) -> None:
    from lmms.train.data.view import pack_segments

    screen.rule(
        f"[bold]pack {number}[/]  {len(pack.input_ids):,} tokens, {counted(len(pack.lengths), 'conversation')}",
        align="left",
    )
    places = [source["name"] for source in dataset.manifest.sources]
    names = dict(zip(places, short_places(places), strict=True))
    for i, segment in enumerate(pack_segments(pack, dataset.manifest)):
        weight = "" if segment["weight"] == 1 else f", weight {segment['weight']:g}"
        place = escape(f"{names[segment['source']]}, row {segment['row']}{weight}")
        screen.rule(
            f"{i}  [{segment['start']:,}, {segment['end']:,})  {place}", align="left", style="dim", characters="╌"
        )
        text = segment_text(pack, segment, tokenizer)
        if shorten and len(text) > _PREVIEW:
            text = text[:_PREVIEW] + Text(f" … {len(text) - _PREVIEW:,} more characters", style="dim italic")
        screen.print(text)


def segment_text(pack: "Pack", segment: dict[str, Any], tokenizer: "Tokenizer") -> Text:
    """The conversation as the model reads it: targets green, other tokens plain, an image as a short description; a
    weight of a message that is not 1 stands before its target."""
    from lmms.train.data.view import segment_pieces

    pieces = segment_pieces(pack, segment, lambda ids: tokenizer.decode(ids, skip_special_tokens=False))
    return Text.assemble(*((piece.text, _STYLES[piece.kind]) for piece in pieces))
