"""A pack for people and programs: its conversations as plain values, and as pieces of text."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from lmms.configs.contract.manifest import Manifest
from lmms.configs.contract.pack import Pack

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
            "media": [media.to_json() for media in pack.media if start <= media.start < end],
        }


def segment_pieces(pack: Pack, segment: dict[str, Any], decode: Callable[[list[int]], str]) -> Iterator[Piece]:
    """The conversation as the model reads it, in order: an image as a short description; a weight of a message that is
    not 1 before its target.

    segment: one of pack_segments. decode: token ids -> text.
    """

    def text(start: int, end: int) -> str:
        return decode(pack.input_ids[start:end].tolist()).translate(_CONTROL_PICTURES)

    targets = {(start, end): weight for start, end, weight in segment["targets"]}
    images = {(media["start"], media["end"]): media for media in segment["media"]}
    at = segment["start"]
    for start, end in sorted([*targets, *images]):
        yield Piece("prompt", text(at, start))
        if (start, end) in images:
            media = images[start, end]
            (w, h), (_, grid_h, grid_w) = media["size"], media["grid_thw"]
            grid = f"{grid_w} x {grid_h} patches, {end - start} tokens"
            yield Piece("media", f"[{media['kind']} {w} x {h}, {grid}, {media['bytes']:,} bytes]")
        else:
            if targets[start, end] != 1:
                yield Piece("weight", f"[weight {targets[start, end]:g}]")
            yield Piece("target", text(start, end))
        at = end
    yield Piece("prompt", text(at, segment["end"]))
