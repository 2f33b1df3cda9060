"""A pack for people and programs: its conversations as plain values, and as pieces of text."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from lmms.configs.contract.manifest import Manifest
from lmms.configs.contract.pack import Media, Pack
from lmms.configs.words import counted

_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters, which a terminal would obey -> visible signs."""


class Piece(NamedTuple):
    """A piece of a conversation."""

    kind: Literal["prompt", "target", "weight", "media"]
    text: str


def pack_json(number: int, pack: Pack, manifest: Manifest) -> dict[str, Any]:
    """A pack as plain values; positions are token positions within the pack."""
    return {"pack": number, "input_ids": pack.input_ids.tolist(), "segments": list(pack_segments(pack, manifest))}


def pack_segments(pack: Pack, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Each conversation of a pack: its place, source, row, weight, targets [start, end, message's weight] and media."""
    targets = [
        [*span, weight] for span, weight in zip(pack.targets.tolist(), pack.target_weights.tolist(), strict=True)
    ]
    bounds = pack.cu_seqlens.tolist()
    samples = zip(pack.samples.tolist(), pack.sample_weights.tolist(), strict=True)
    for ((source, row), weight), start, end in zip(samples, bounds, bounds[1:], strict=False):
        yield {
            "start": start,
            "end": end,
            "source": manifest.sources[source]["name"],
            "row": row,
            "weight": weight,
            "targets": [target for target in targets if start <= target[0] < end],
            "media": [_entry(media, manifest) for media in pack.media if start <= media.start < end],
        }


def _entry(media: Media, manifest: Manifest) -> dict[str, Any]:
    """The entry of `media`, of a sound also its length in seconds."""
    if media.sound is None or manifest.audio is None:
        return media.to_json()
    return {**media.to_json(), "seconds": media.sound.samples / manifest.audio.sample_rate}


def segment_pieces(pack: Pack, segment: dict[str, Any], decode: Callable[[list[int]], str]) -> Iterator[Piece]:
    """The conversation as the model reads it, in order: an image, or rows of a video that stand end to end, as a short
    description; a weight of a message that is not 1 before its target.

    segment: one of pack_segments. decode: token ids -> text.
    """

    def text(start: int, end: int) -> str:
        return decode(pack.input_ids[start:end].tolist()).translate(_CONTROL_PICTURES)

    targets = {(start, end): weight for start, end, weight in segment["targets"]}
    images = {(run[0]["start"], run[-1]["end"]): run for run in _runs(segment["media"])}
    at = segment["start"]
    for start, end in sorted([*targets, *images]):
        yield Piece("prompt", text(at, start))
        if (start, end) in images:
            yield Piece("media", _described(images[start, end], end - start))
        else:
            if targets[start, end] != 1:
                yield Piece("weight", f"[weight {targets[start, end]:g}]")
            yield Piece("target", text(start, end))
        at = end
    yield Piece("prompt", text(at, segment["end"]))


def _runs(media: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Each image alone, and the rows of a video together that stand end to end."""
    run: list[dict[str, Any]] = []
    for entry in media:
        goes_on = run and entry.get("row", {}).get("number") and run[-1]["end"] == entry["start"]
        if run and not goes_on:
            yield run
            run = []
        run.append(entry)
    if run:
        yield run


def _described(run: Sequence[dict[str, Any]], tokens: int) -> str:
    if "sound" in run[0]:
        return f"[sound of {run[0]['seconds']:.2f} s, {tokens} tokens, {run[0]['bytes']:,} bytes]"
    (w, h), (_, grid_h, grid_w) = run[0]["size"], run[0]["grid_thw"]
    rows = f"{len(run)} rows of " if len(run) > 1 else ""
    what = f"{w} x {h}, {rows}{grid_w} x {grid_h} patches, {tokens} tokens"
    if "row" not in run[0]:
        return f"[{run[0]['kind']} {what}, {run[0]['bytes']:,} bytes]"
    seconds = [second for entry in run for second in entry["row"]["seconds"]]
    times = f"from {seconds[0]:.1f} to {seconds[-1]:.1f} s" if len(seconds) > 1 else f"at {seconds[0]:.1f} s"
    frames = f"{counted(len(seconds), 'frame')} {times}"
    return f"[video {what}, {frames}, {sum(entry['bytes'] for entry in run):,} bytes]"
