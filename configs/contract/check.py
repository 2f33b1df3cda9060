"""Whether a pack keeps to the contract: checked when a pack is written, read for training, and verified."""

from dataclasses import dataclass

import numpy as np

from lmms.configs.contract.media.geometry import Vision, grid_tokens
from lmms.configs.contract.media.sounds import Audio
from lmms.configs.contract.pack import LEAST_WEIGHT, MOST_WEIGHT, Media, Pack


@dataclass(frozen=True, kw_only=True, slots=True)
class PackLimits:
    """The limits that check_pack checks; the manifest has all of them."""

    seq_len: int
    max_patches: int
    image_token_id: int | None
    merge_size: int
    video_token_id: int | None = None
    audio_token_id: int | None = None
    audio: Audio | None = None
    """None for a model that hears nothing."""
    vocab_size: int | None = None
    """Token ids are below; None where that is not known, as in a manifest."""


def pack_limits(
    seq_len: int,
    max_patches: int,
    vision: Vision | None,
    image_token_id: int | None,
    video_token_id: int | None = None,
    audio_token_id: int | None = None,
    audio: Audio | None = None,
) -> PackLimits:
    """The limits of the packs of a model; vision, audio, ids of placeholders: None for media that it does not read."""
    return PackLimits(
        seq_len=seq_len,
        max_patches=max_patches,
        image_token_id=image_token_id,
        video_token_id=video_token_id,
        audio_token_id=audio_token_id,
        audio=audio,
        merge_size=vision.merge_size if vision else 1,
    )


def check_pack(pack: Pack, limits: PackLimits) -> list[str]:
    """Every way in which a pack breaks the contract, as sentences; empty for a pack without fault."""
    shape_faults = _shape_faults(pack) or _segment_faults(pack)
    if shape_faults:  # nothing can be said about positions that do not exist
        return shape_faults
    tokens = len(pack.input_ids)
    too_long = [f"{tokens} tokens, at most {limits.seq_len} fit"] if tokens > limits.seq_len else []
    return too_long + _id_faults(pack, limits.vocab_size) + _target_faults(pack) + _media_faults(pack, limits)


def _shape_faults(pack: Pack) -> list[str]:
    spans, segments = len(pack.targets), len(pack.cu_seqlens) - 1
    expected = {
        "input_ids": (len(pack.input_ids),),
        "cu_seqlens": (segments + 1,),
        "targets": (spans, 2),
        "target_weights": (spans,),
        "sample_weights": (segments,),
        "samples": (segments, 2),
    }
    shapes = {name: getattr(pack, name).shape for name in expected}
    return [
        f"{name} has shape {shapes[name]}, expected {shape} without a 0"
        for name, shape in expected.items()
        if shapes[name] != shape or min(shape) < 1
    ]


def _segment_faults(pack: Pack) -> list[str]:
    cuts, tokens = pack.cu_seqlens, len(pack.input_ids)
    if cuts[0] != 0 or cuts[-1] != tokens or (cuts[1:] <= cuts[:-1]).any():
        return [f"cu_seqlens {cuts.tolist()[:4]}... does not cut {tokens} tokens into segments"]
    return []


def _id_faults(pack: Pack, vocab_size: int | None) -> list[str]:
    low, high = int(pack.input_ids.min()), int(pack.input_ids.max())
    if low < 0:
        return [f"input_ids holds {low}, expected no number below 0"]
    if vocab_size is not None and high >= vocab_size:
        return [f"input_ids holds {high}, expected less than the vocabulary's {vocab_size}"]
    return []


def _target_faults(pack: Pack) -> list[str]:
    starts, ends = pack.targets[:, 0], pack.targets[:, 1]
    if (starts >= ends).any() or (starts[1:] < ends[:-1]).any() or starts[0] < 0 or ends[-1] > len(pack.input_ids):
        return ["targets are not ordered, disjoint spans within the pack"]
    faults = []
    segment = np.searchsorted(pack.cu_seqlens, starts, side="right") - 1
    if (starts == pack.cu_seqlens[segment]).any() or (ends > pack.cu_seqlens[segment + 1]).any():
        faults.append("a target span starts a segment or crosses its end")
    for name in ("target_weights", "sample_weights"):
        weights = getattr(pack, name)
        if not ((weights >= LEAST_WEIGHT) & (weights <= MOST_WEIGHT)).all():
            faults.append(f"{name} are not all from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}")
    return faults


def _media_faults(pack: Pack, limits: PackLimits) -> list[str]:
    faults = []
    if pack.tower_positions > limits.max_patches:
        heard = f" and {pack.sound_positions} positions of sounds" if pack.sound_positions else ""
        faults.append(f"{pack.patches} patches{heard}, at most {limits.max_patches} fit")
    if sum(m.bytes for m in pack.media) != len(pack.media_bytes):
        faults.append(f"media_bytes has {len(pack.media_bytes)} bytes, media states {sum(m.bytes for m in pack.media)}")
    ids = {"image": limits.image_token_id, "video": limits.video_token_id, "audio": limits.audio_token_id}
    reads_media = any(token is not None for token in ids.values())
    shown = np.full(len(pack.input_ids), -1, np.int32)
    last = 0
    for i, m in enumerate(pack.media):
        if not last <= m.start < m.end <= len(pack.input_ids) or pack.segment_of(m.start) != pack.segment_of(m.end - 1):
            faults.append(f"media {i} at [{m.start}, {m.end}) is out of order, out of the pack or across segments")
            continue
        faults += _sound_faults(i, m, limits.audio) if m.sound else _grid_faults(i, m, limits.merge_size)
        faults += _row_faults(i, m)
        token = ids.get(m.kind)
        if token is None and reads_media:
            faults.append(f"media {i} is of kind {m.kind!r}, which has no placeholder here")
        shown[m.start : m.end] = -2 if token is None else token
        last = m.end
    if not reads_media:
        return faults + (["media in a pack of a text model"] if pack.media else [])
    for kind, token in ids.items():
        if token is not None and ((shown == token) != (pack.input_ids == token)).any():
            faults.append(f"the {kind} placeholders in input_ids are not exactly the tokens that media covers")
    return faults


def _grid_faults(number: int, media: Media, merge_size: int) -> list[str]:
    tokens, grid = media.end - media.start, list(media.grid_thw)
    if any(side % merge_size for side in media.grid_thw[1:]):
        return [f"media {number} has grid {grid}, not in whole squares of {merge_size}"]
    if tokens != grid_tokens(media.grid_thw, merge_size):
        return [f"media {number} has {tokens} tokens, its grid {grid} needs another number"]
    return []


def _sound_faults(number: int, media: Media, audio: Audio | None) -> list[str]:
    sound, tokens = media.sound, media.end - media.start
    if sound is None or media.kind != "audio" or any((*media.size, *media.grid_thw)):
        return [f"media {number} of kind {media.kind!r} has a sound; expected kind 'audio', without size and grid"]
    if audio and (tokens != audio.tokens(sound.samples) or list(sound.chunks) != audio.tower_chunks(sound.samples)):
        return [f"media {number} has {tokens} tokens, {sound.samples} samples and {len(sound.chunks)} chunks: no match"]
    return []


def _row_faults(number: int, media: Media) -> list[str]:
    row = media.row
    if (media.kind == "video") != (row is not None):
        return [f"media {number} of kind {media.kind!r} {'lacks' if row is None else 'has'} a row of frames"]
    if row and (not 0 <= row.number < row.rows or not row.bytes or len(row.bytes) != len(row.seconds)):
        return [f"media {number} is row {row.number} of {row.rows}, with {len(row.bytes)} frames: no such row"]
    if row and (sum(row.bytes) != media.bytes or min(row.bytes) < 1):
        return [f"media {number} has {media.bytes} bytes, its frames have {sum(row.bytes)}"]
    return []
