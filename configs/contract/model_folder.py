"""What a Hugging Face model folder says about records and pixels: family, tokenizer, template, processor settings.

Plain JSON reading: neither transformers nor torch is needed to prepare shards. The fingerprints are what a manifest
stores and `lmms train` compares, so a model folder still fits after it is saved again with the same content.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmms.configs.contract.families import family_facts
from lmms.configs.contract.media.geometry import Vision
from lmms.configs.contract.media.sounds import Audio
from lmms.configs.contract.media.video import VideoRule
from lmms.configs.contract.model_files import (
    read_audio,
    read_config,
    read_json,
    read_model_text,
    read_video,
    read_vision,
)
from lmms.configs.errors import ModelError

PREP_FILES = ("*.json", "*.jinja")
TRAIN_FILES = (*PREP_FILES, "*.safetensors", "*.txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolder:
    """A model folder as prep and train need it."""

    path: Path
    family: str
    tokenizer_json: Path
    chat_template: str
    special_tokens: Mapping[str, str]
    """Name in the template (bos_token, eos_token, pad_token, ...) -> token."""
    vision: Vision | None
    image_token_id: int | None
    tokenizer_fingerprint: str
    video: VideoRule | None = None
    video_token_id: int | None = None
    audio: Audio | None = None
    audio_token_id: int | None = None
    own_template: bool = True
    """Whether chat_template is the folder's; False for a template that was given in its place."""
    vocab_size: int | None = None
    """Rows of the model's embedding; None where config.json does not say."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hashes of tokenizer, template, vision and audio, on which the ids, grids and media of a shard depend."""
        vision = _digest(json.dumps(asdict(self.vision), sort_keys=True)) if self.vision else ""
        audio = {"audio": _digest(json.dumps(asdict(self.audio), sort_keys=True))} if self.audio else {}
        template = _digest(self.chat_template)
        return {"tokenizer": self.tokenizer_fingerprint, "template": template, "vision": vision, **audio}


def resolve_model(model: str, patterns: Sequence[str]) -> Path:
    """The folder of a model: `model` itself if it is a folder, else the hub snapshot (only files of `patterns`)."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ModelError(f"model {model!r} is neither a folder nor a hub id of the form organisation/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"model {model!r} is no folder here and could not be fetched from the hub: {error}") from error


def read_model_folder(
    path: Path | str, min_pixels: int | None = None, max_pixels: int | None = None, chat_template: str | None = None
) -> ModelFolder:
    """Read a folder. min_pixels and max_pixels, in pixels, override the processor's; chat_template the folder's."""
    path = Path(path)
    config = read_config(path)
    facts = family_facts(config.get("model_type"), path / "config.json")
    placeholders = facts.placeholders
    tokenizer = read_json(path / "tokenizer.json")
    tokenizer_config = read_json(path / "tokenizer_config.json")
    has_vision, has_audio = "image" in placeholders, "audio" in placeholders
    vision = read_vision(path, min_pixels, max_pixels) if has_vision else None
    return ModelFolder(
        path=path,
        family=config["model_type"],
        tokenizer_json=path / "tokenizer.json",
        chat_template=chat_template or _chat_template(path, tokenizer_config, bool(placeholders)),
        own_template=not chat_template,
        special_tokens=_special_tokens(tokenizer_config),
        vision=vision,
        video=read_video(path, facts, vision) if vision and "video" in placeholders else None,
        image_token_id=_token_id(path, config, tokenizer, "image", placeholders["image"]) if has_vision else None,
        video_token_id=_video_token_id(path, config, tokenizer, placeholders.get("video")),
        audio=read_audio(path, config, facts.fills_sounds) if has_audio else None,
        audio_token_id=_token_id(path, config, tokenizer, "audio", placeholders["audio"]) if has_audio else None,
        tokenizer_fingerprint=_tokenizer_fingerprint(path, tokenizer),
        vocab_size=(config.get("text_config") or config).get("vocab_size"),
    )


def _token_id(path: Path, config: Mapping[str, Any], tokenizer: Mapping[str, Any], kind: str, token: str) -> int:
    """The id of the placeholder of a kind of media, on which config.json and tokenizer.json must agree."""
    token_id = _config_token_id(config, kind)
    placeholder = [t["id"] for t in tokenizer.get("added_tokens", ()) if t["content"] == token]
    if not isinstance(token_id, int) or [token_id] != placeholder:
        raise ModelError(
            f"{path}: {kind}_token_id is {token_id} in config.json, {token} is {placeholder} in tokenizer.json"
        )
    return token_id


def _config_token_id(config: Mapping[str, Any], kind: str) -> Any:
    """The id in config.json, which has another name in older files."""
    return config.get(f"{kind}_token_id", config.get(f"{kind}_token_index"))


def _video_token_id(
    path: Path, config: Mapping[str, Any], tokenizer: Mapping[str, Any], token: str | None
) -> int | None:
    """The id of the placeholder of videos; None for a model whose config or tokenizer has none."""
    is_known = any(each["content"] == token for each in tokenizer.get("added_tokens", ()))
    if token is None or not is_known or _config_token_id(config, "video") is None:
        return None
    return _token_id(path, config, tokenizer, "video", token)


def _chat_template(path: Path, tokenizer_config: Mapping[str, Any], has_processor: bool) -> str:
    """The template, from the file that transformers takes: chat_template.json, the .jinja or tokenizer_config.json."""
    legacy, jinja = path / "chat_template.json", path / "chat_template.jinja"
    if has_processor and legacy.is_file():
        template = read_json(legacy).get("chat_template")
    elif jinja.is_file():
        template = read_model_text(jinja)
    else:
        template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        template = next((t["template"] for t in template if t["name"] == "default"), None)
    if not isinstance(template, str):
        places = ("chat_template.json, " if has_processor else "") + "chat_template.jinja or tokenizer_config.json"
        raise ModelError(f"{path} has no chat template ({places})")
    return template


def _special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    tokens = {}
    for name, value in tokenizer_config.items():
        token = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(token, str):
            tokens[name] = token
    return tokens


def _tokenizer_fingerprint(path: Path, tokenizer: Mapping[str, Any]) -> str:
    """Digest of all that decides the ids; equal if another version of transformers or tokenizers saves the file again.

    Versions differ in how they write merges ("a b" or ["a", "b"]), in which unset options they name, and in
    trim_offsets, which moves no id.
    """
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        raise ModelError(f"{path / 'tokenizer.json'} holds no byte-pair model with merges")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    options = {name: value for name, value in model.items() if value not in (None, False, "")}
    parts = {name: _without(tokenizer.get(name), "trim_offsets") for name in ("normalizer", "pre_tokenizer")}
    body = {"model": {**options, "merges": merges}, "added_tokens": tokenizer.get("added_tokens"), **parts}
    return _digest(json.dumps(body, sort_keys=True))


def _without(value: Any, key: str) -> Any:
    """The same nested value without any entry of this key."""
    if isinstance(value, list):
        return [_without(item, key) for item in value]
    if isinstance(value, dict):
        return {name: _without(item, key) for name, item in value.items() if name != key}
    return value


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
