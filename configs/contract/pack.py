"""What a pack is, on disk and in memory: the page that joins prep and train.

A pack is one training sequence: whole conversations, end to end. Positions are token positions within the pack.

    column          encoding        shape           meaning
    input_ids       ndarray:int32   [tokens]        token ids, image placeholders expanded
    cu_seqlens      ndarray:int32   [segments + 1]  0, end of segment 0, ..., tokens; a segment is one conversation
    targets         ndarray:int32   [spans, 2]      [start, end) of tokens to predict; never a segment's first token
    target_weights  ndarray:float64 [spans]         weight of the span's message, for each of its target tokens
    sample_weights  ndarray:float64 [segments]      weight of the conversation's record
    samples         ndarray:int64   [segments, 2]   (index into manifest.sources, row in that source)
    media           json            list            {kind, start, end, size [w, h], grid_thw [t, h, w], bytes}, in order
    media_bytes     bytes                           the media's own encoded bytes, one after the other

A video is one entry of `media` for each row of its frames: the frames that the vision tower reads together, which stand
in the text as a picture does. Such an entry also has `row`, see Row. A sound is an entry with `sound`, see Sound, and
zeros for size and grid.

Plain MDS encodings only, so that any MDS reader decodes every column. MDS refuses empty arrays: a pack always has
tokens, a segment and a target, and what may be empty is json or bytes.

What a target counts in the loss follows from both weights: see LossWeight.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.media.geometry import grid_patches

CONTRACT_VERSION = 3

LEAST_WEIGHT, MOST_WEIGHT = 1e-12, 1e12
"""Bounds of a weight above 0: sums of products of two weights do not overflow in float32."""

COLUMNS: Mapping[str, str] = {
    "input_ids": "ndarray:int32",
    "cu_seqlens": "ndarray:int32",
    "targets": "ndarray:int32",
    "target_weights": "ndarray:float64",
    "sample_weights": "ndarray:float64",
    "samples": "ndarray:int64",
    "media": "json",
    "media_bytes": "bytes",
}

PACK_TABLE: Mapping[str, str] = {
    "shard": "int32",  # index into index.json
    "offset": "int64",  # of the pack's bytes in the shard file
    "bytes": "int64",
    "xxh3": "uint64",  # of those bytes
    "tokens": "int32",
    "target_tokens": "int32",
    "target_weight": "float64",  # sum over target tokens: the pack's part of the loss denominator; the next two too:
    "conversation_weight": "float64",  # if every conversation counts alike
    "sqrt_weight": "float64",  # if a conversation counts by the square root of its length; see LossWeight
    "segments": "int32",
    "sum_squared_lengths": "int64",  # over segments: the cost of attention
    "patches": "int32",
    "sum_squared_patches": "int64",  # over images and rows of videos: the cost of attention in the vision tower
    "media": "int32",  # pictures, rows of videos, and sounds
    "source_ids": "list<int32>",
    "source_tokens": "list<int32>",  # tokens of each of source_ids
}
"""Columns of packs.parquet, the sidecar: one row a pack, in shard order. name -> Arrow type."""

SOUND_TABLE: Mapping[str, str] = {
    "sound_tokens": "int32",  # placeholders of sounds
    "sound_positions": "int32",  # positions that enter the audio tower's blocks
    "sum_squared_sounds": "int64",  # over chunks of sounds: the cost of attention in the audio tower
}
"""More columns of packs.parquet, where the model hears."""

SAMPLE_TABLE: Mapping[str, str] = {
    "source": "int32",
    "row": "int64",
    "pack": "int64",
    "segment": "int32",
    "tokens": "int32",
    "target_tokens": "int32",
    "media": "int32",
}
"""Columns of samples.parquet: one row a packed conversation or piece of a text, in the order read. A row without tokens
is a record that was joined to the conversation of an earlier row, which has the same pack and segment."""

REJECT_TABLE: Mapping[str, str] = {
    "source": "string",
    "row": "int64",
    "reason": "string",
    "message": "string",
    "place": "string",
}
"""Columns of rejects.parquet: one row a rejected record, in the order read."""


FETCHED_TABLE: Mapping[str, str] = {
    "url": "string",
    "sha256": "string",  # of the bytes, in hexadecimal
    "bytes": "int64",
    "width": "int32",  # as shown
    "height": "int32",
}
"""Columns of fetched.parquet: one row a picture that came over the network, by URL. The file is there if any did."""


def first_samples(source: npt.NDArray[Any], row: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """bool [samples]: whether a row of samples.parquet is the first of its record; a long text has several rows."""
    is_first = np.ones(len(row), bool)
    is_first[1:] = (np.diff(row) != 0) | (np.diff(source) != 0)
    return is_first


@dataclass(frozen=True, slots=True)
class Row:
    """A row of frames among the rows of its video: as many frames as the tower reads together, the last row maybe
    fewer; the last frame is then repeated."""

    number: int
    """From 0."""
    rows: int
    """Rows of the video."""
    step: float
    """Seconds from a row to the next, for models whose positions follow time."""
    seconds: tuple[float, ...]
    """The time of each frame."""
    bytes: tuple[int, ...]
    """Bytes of each frame, an encoded picture."""


@dataclass(frozen=True, slots=True)
class Sound:
    """A sound: one channel of samples, as FLAC."""

    samples: int
    """At the model's sample rate."""
    chunks: tuple[int, ...]
    """Positions of each chunk that the audio tower reads: attention stays within a chunk."""


@dataclass(frozen=True, slots=True)
class Media:
    """A picture, a row of frames of a video, or a sound: where its tokens are, its size, its grid, its bytes."""

    kind: str
    start: int
    end: int
    size: tuple[int, int]
    """(width, height) in pixels, after EXIF rotation."""
    grid_thw: tuple[int, int, int]
    """Patches in time, height and width, after the processor's resize; 1 in time."""
    bytes: int
    row: Row | None = None
    """None but for a row of a video."""
    sound: Sound | None = None
    """None but for a sound."""

    def to_json(self) -> dict[str, Any]:
        """The entry of the `media` column, and of `lmms inspect shard --json`."""
        place = {"kind": self.kind, "start": self.start, "end": self.end}
        more = {name: asdict(value) for name in ("row", "sound") if (value := getattr(self, name))}
        return {**place, "size": list(self.size), "grid_thw": list(self.grid_thw), "bytes": self.bytes, **more}

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> "Media":
        """Inverse of to_json. Raises KeyError, TypeError or ValueError for an entry that to_json would not make."""
        (w, h), (t, gh, gw), row, sound = entry["size"], entry["grid_thw"], entry.get("row"), entry.get("sound")
        if row is not None:
            row = Row(**{**row, "seconds": tuple(row["seconds"]), "bytes": tuple(row["bytes"])})
        if sound is not None:
            sound = Sound(sound["samples"], tuple(sound["chunks"]))
        media = Media(entry["kind"], entry["start"], entry["end"], (w, h), (t, gh, gw), entry["bytes"], row, sound)
        whole, real = [media.start, media.end, w, h, t, gh, gw, media.bytes], list[Any]()
        if row:
            whole += [row.number, row.rows, *row.bytes]
            real += [row.step, *row.seconds]
        if sound:
            whole += [sound.samples, *sound.chunks]
        if type(media.kind) is not str or {type(value) for value in whole} != {int} or not all(map(_is_real, real)):
            raise TypeError("a value has another type")
        return media


def _is_real(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """One pack in memory; the fields are the columns above."""

    input_ids: npt.NDArray[np.int32]
    cu_seqlens: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    target_weights: npt.NDArray[np.float64]
    sample_weights: npt.NDArray[np.float64]
    samples: npt.NDArray[np.int64]
    media: tuple[Media, ...]
    media_bytes: bytes

    def to_columns(self) -> dict[str, Any]:
        """Values for mds.encode_sample(COLUMNS, ...)."""
        return {
            "input_ids": self.input_ids,
            "cu_seqlens": self.cu_seqlens,
            "targets": self.targets,
            "target_weights": self.target_weights,
            "sample_weights": self.sample_weights,
            "samples": self.samples,
            "media": [m.to_json() for m in self.media],
            "media_bytes": self.media_bytes,
        }

    @staticmethod
    def from_columns(columns: Mapping[str, Any]) -> "Pack":
        """Inverse of to_columns. Raises ValueError for media that to_columns would not make."""
        try:
            media = tuple(Media.from_json(entry) for entry in columns["media"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"media {columns['media']!r:.200} is damaged: {error!r}") from error
        return Pack(**{**columns, "media": media})

    def media_data(self) -> list[bytes]:
        """The encoded bytes of each entry of `media`."""
        ends = np.cumsum([m.bytes for m in self.media], dtype=np.int64).tolist()
        return [self.media_bytes[end - m.bytes : end] for m, end in zip(self.media, ends, strict=True)]

    def segment_of(self, position: int) -> int:
        """The segment that holds this token position."""
        return int(np.searchsorted(self.cu_seqlens, position, side="right")) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """int32 [segments]: tokens of each segment."""
        return np.diff(self.cu_seqlens)

    @property
    def patches(self) -> int:
        """Patches that enter the vision tower."""
        return sum(grid_patches(m.grid_thw) for m in self.media)

    @property
    def sound_tokens(self) -> int:
        """Tokens of the language model that stand for sounds."""
        return sum(m.end - m.start for m in self.media if m.sound)

    @property
    def sound_positions(self) -> int:
        """Positions that enter the audio tower's blocks."""
        return sum(sum(m.sound.chunks) for m in self.media if m.sound)

    @property
    def sum_squared_sounds(self) -> int:
        """Sum over chunks of sounds of squared positions."""
        return sum(chunk**2 for m in self.media if m.sound for chunk in m.sound.chunks)

    @property
    def tower_positions(self) -> int:
        """Patches and positions of sounds: what the towers read of a pack, which `max_patches` limits."""
        return self.patches + self.sound_positions

    @property
    def sum_squared_patches(self) -> int:
        """Sum over images and rows of videos of squared patches: the tower's attention stays within each."""
        return sum(t * (h * w) ** 2 for t, h, w in (m.grid_thw for m in self.media))


def join_packs(packs: Sequence[Pack]) -> Pack:
    """One pack of the conversations of several, in this order."""
    starts = np.cumsum([0, *(len(pack.input_ids) for pack in packs)]).astype(np.int32)
    placed = list(zip(packs, starts.tolist(), strict=False))
    return Pack(
        input_ids=np.concatenate([pack.input_ids for pack in packs]),
        cu_seqlens=np.concatenate([starts[:1], *(pack.cu_seqlens[1:] + np.int32(start) for pack, start in placed)]),
        targets=np.concatenate([pack.targets + np.int32(start) for pack, start in placed]),
        target_weights=np.concatenate([pack.target_weights for pack in packs]),
        sample_weights=np.concatenate([pack.sample_weights for pack in packs]),
        samples=np.concatenate([pack.samples for pack in packs]),
        media=tuple(replace(m, start=m.start + start, end=m.end + start) for pack, start in placed for m in pack.media),
        media_bytes=b"".join(pack.media_bytes for pack in packs),
    )
