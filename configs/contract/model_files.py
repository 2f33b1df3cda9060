"""The files of a model folder, and what those of its processors say about pictures, videos and sounds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lmms.configs.contract.families import FamilyFacts
from lmms.configs.contract.media.geometry import Vision
from lmms.configs.contract.media.sounds import Audio
from lmms.configs.contract.media.video import VideoRule
from lmms.configs.errors import ModelError
from lmms.configs.words import type_name

_EXTRACTOR = "WhisperFeatureExtractor"
_PIXEL_SETTINGS = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
}
"""The settings of every Qwen processor, and of training; 3 is bicubic."""
_SOUND_SETTINGS = {"dither": 0.0, "padding_value": 0.0, "padding_side": "right", "feature_extractor_type": _EXTRACTOR}
"""The settings of every feature extractor of Qwen, and of training."""
_DEFAULT_MIN_PIXELS, _DEFAULT_MAX_PIXELS = 56 * 56, 28 * 28 * 1280  # of Qwen2VLImageProcessor, if the file has none
_DEFAULT_VIDEO_TOKENS = 128, 768  # smallest and largest area in tokens, of both video processors
_DEFAULT_FPS, _DEFAULT_MIN_FRAMES, _DEFAULT_MAX_FRAMES = 2.0, 4, 768
"""Qwen2VLVideoProcessor has no rate: then the rate of qwen_vl_utils, which is that of Qwen3VLVideoProcessor too."""


def read_model_text(path: Path) -> str:
    """The text of a file. ModelError for a file that is missing, or no UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: not a complete model folder") from None
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ModelError for a file that holds none."""
    try:
        body = json.loads(read_model_text(path))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error})") from error
    if not isinstance(body, dict):
        raise ModelError(f"{path} holds {type_name(body)}, expected a JSON object")
    return body


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a model folder; of a whole Omni model that of its thinker. Raises ModelError."""
    config = read_json(path / "config.json")
    thinker = config.get("thinker_config")
    return {**thinker, "model_type": config.get("model_type")} if isinstance(thinker, dict) else config


def read_vision(path: Path, min_pixels: int | None, max_pixels: int | None) -> Vision:
    """The settings of the image processor; the limits of the area are those given, if any. Raises ModelError."""
    file, settings = _image_settings(path)
    _check_pixels(file, settings)
    size = settings.get("size") or {}
    if not isinstance(size, dict):
        raise ModelError(f"{file}: size is {size!r}, expected an object")
    low = min_pixels or settings.get("min_pixels") or size.get("shortest_edge") or _DEFAULT_MIN_PIXELS
    high = max_pixels or settings.get("max_pixels") or size.get("longest_edge") or _DEFAULT_MAX_PIXELS
    if isinstance(low, int) and isinstance(high, int) and low > high:
        raise ModelError(f"{file}: smallest image area {low} is above the largest {high}; set min_pixels, max_pixels")
    try:
        return Vision(
            patch_size=settings["patch_size"],
            merge_size=settings["merge_size"],
            temporal_patch_size=settings["temporal_patch_size"],
            min_pixels=low,
            max_pixels=high,
            image_mean=cast(tuple[float, float, float], tuple(settings["image_mean"])),
            image_std=cast(tuple[float, float, float], tuple(settings["image_std"])),
        )
    except KeyError as error:
        raise ModelError(f"{file} lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise ModelError(f"{file}: {error}") from error


def _image_settings(path: Path) -> tuple[Path, dict[str, Any]]:
    """File and settings of the image processor; transformers 5 saves to processor_config.json and reads it first."""
    return _settings_of(path, "image_processor")


def _settings_of(path: Path, name: str) -> tuple[Path, dict[str, Any]]:
    file = path / "processor_config.json"
    nested = read_json(file).get(name) if file.is_file() else None
    if isinstance(nested, dict):
        return file, nested
    return path / "preprocessor_config.json", read_json(path / "preprocessor_config.json")


def read_video(path: Path, facts: FamilyFacts, vision: Vision) -> VideoRule:
    """The settings of the video processor; transformers takes them from the first of three files. Raises ModelError.

    facts: of the family. vision: of pictures, whose patches and colours videos share.
    """
    file, settings = _video_settings(path)
    _check_pixels(file, settings)
    for name in ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std"):
        value, expected = settings.get(name), getattr(vision, name)
        if value is not None and value != (list(expected) if isinstance(expected, tuple) else expected):
            raise ModelError(f"{file}: {name} is {value}, {expected} for pictures; expected the same for both")
    size = settings.get("size") or {}
    if facts.video_tokens:
        settings, size = {name: value for name, value in settings.items() if "_pixels" not in name}, {}
    least, most = (tokens * vision.factor**2 for tokens in facts.video_tokens or _DEFAULT_VIDEO_TOKENS)
    try:
        return VideoRule(
            areas=facts.video_areas,
            asked_pace=facts.asked_pace,
            min_pixels=settings.get("min_pixels") or size.get("shortest_edge") or least,
            max_pixels=settings.get("max_pixels") or size.get("longest_edge") or most,
            fps=settings.get("fps") or _DEFAULT_FPS,
            min_frames=settings.get("min_frames") or _DEFAULT_MIN_FRAMES,
            max_frames=settings.get("max_frames") or _DEFAULT_MAX_FRAMES,
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"{file}: {error}") from error


def read_audio(path: Path, config: Mapping[str, Any], is_filled: bool) -> Audio:
    """The settings of the feature extractor, and the chunks of the tower by config.json. Raises ModelError.

    is_filled: see Audio; then the tower reads every sound as one chunk.
    """
    file, settings = _settings_of(path, "feature_extractor")
    for name, expected in _SOUND_SETTINGS.items():
        if settings.get(name, expected) != expected:
            raise ModelError(f"{file}: {name} is {settings[name]!r}, only {expected!r} is supported")
    tower = config.get("audio_config")
    if not isinstance(tower, dict):
        raise ModelError(f"{path / 'config.json'}: audio_config is {type_name(tower)}, expected an object")
    name = "max_source_positions" if is_filled else "n_window"
    try:
        audio = Audio(
            sample_rate=settings["sampling_rate"],
            mel_bins=settings["feature_size"],
            fft=settings["n_fft"],
            hop=settings["hop_length"],
            longest=settings["n_samples"],
            chunk=2 * tower[name],
            is_filled=is_filled,
        )
    except KeyError as error:
        raise ModelError(f"{file} or audio_config in {path / 'config.json'} lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise ModelError(f"{file}: {error}") from error
    if is_filled and audio.longest != audio.chunk * audio.hop:
        raise ModelError(
            f"{file}: n_samples is {audio.longest}, the tower reads {audio.chunk} frames; expected the same"
        )
    return audio


def _video_settings(path: Path) -> tuple[Path, dict[str, Any]]:
    nested, of_videos, of_images = (
        path / name for name in ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")
    )
    settings = read_json(nested).get("video_processor") if nested.is_file() else None
    if isinstance(settings, dict):
        return nested, settings
    if of_videos.is_file():
        return of_videos, read_json(of_videos)
    return _image_settings(path) if not of_images.is_file() else (of_images, read_json(of_images))


def _check_pixels(file: Path, settings: dict[str, Any]) -> None:
    for name, expected in _PIXEL_SETTINGS.items():
        if settings.get(name, expected) != expected:
            raise ModelError(f"{file}: {name} is {settings[name]!r}, only {expected!r} is supported")
