"""The JSON and text files of a model folder."""

import json
from pathlib import Path
from typing import Any

from lmms.configs.errors import ModelError
from lmms.configs.words import type_name


def read_model_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: not a complete model folder") from None
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(read_model_text(path))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error})") from error
    if not isinstance(body, dict):
        raise ModelError(f"{path} holds {type_name(body)}, expected a JSON object")
    return body
