"""A function of the user's as a transform: imported by name, hashed for the manifest, its errors placed.

It gets the record, the draws of this record and its options as keywords, and returns a Record or a sequence of them:

    def shorter(record: Record, draws: Draws, most: int = 3) -> Record: ...
"""

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from lmms.configs.errors import ConfigError
from lmms.configs.settings.transforms import Function, Transform
from lmms.prep.records.parts import MEDIA_PARTS, Text
from lmms.prep.records.record import Message, Record
from lmms.prep.records.shapes import Shape
from lmms.prep.reject import REASONS, Reject
from lmms.prep.transforms.transform import Context


def apply(record: Record, settings: Function, context: Context) -> Sequence[Record]:
    """What the function makes of the record. Raises Reject, for any exception of the function too."""
    function = load_function(settings.function)
    try:
        result = function(record, context.draws, **settings.options)
    except Reject as reject:
        reason = reject.reason if reject.reason in REASONS else "transform_error"
        raise Reject(reason, reject.message, reject.place) from None
    except MemoryError:  # not the record's fault, as long as a new process has not tried it
        raise
    except Exception as error:
        raise Reject("transform_error", f"{settings.function}: {_last_line(error)}") from error
    records = [result] if isinstance(result, Record) else result
    if not isinstance(records, list | tuple) or not all(isinstance(made, Record) for made in records):
        message = f"{settings.function} returned {type(result).__name__}, expected a Record or a list of Records"
        raise Reject("transform_error", message)
    if not records:
        raise Reject("transform_dropped", f"{settings.function} returned no record")
    for made in records:
        _check(made, settings.function)
    return records


@cache
def load_function(name: str) -> Callable[..., Any]:
    """The function module:function, from an installed package or the working directory. Raises ConfigError."""
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f"transforms: function {name!r}, expected module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except AttributeError:
        raise ConfigError(f"transforms: the module {module_name} has no {attribute!r}") from None
    except Exception as error:  # an import runs code of the user's
        raise ConfigError(f"transforms: {name} cannot be imported: {_last_line(error)}") from error
    if not callable(function):
        raise ConfigError(f"transforms: {name} is of type {type(function).__name__}, expected a function")
    loaded: Callable[..., Any] = function
    return loaded


def function_hashes(transforms: Sequence[Transform]) -> dict[str, str]:
    """module:function -> SHA-256 of the file of its module, for the manifest. Raises ConfigError."""
    return {step.function: _file_hash(step.function) for step in transforms if isinstance(step, Function)}


def _file_hash(name: str) -> str:
    load_function(name)
    file = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    if file is None:
        raise ConfigError(f"transforms: the module of {name} has no file that can be hashed; put it into a .py file")
    return sha256(Path(file).read_bytes()).hexdigest()


def _last_line(error: Exception) -> str:
    """The exception, and the line of the user's file where it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{traceback.format_exception_only(error)[-1].strip()}{place}"


def _check(record: Record, name: str) -> None:
    """Reject for a record that the rendering could not read."""
    for i, turn in enumerate(record.messages):
        parts = () if isinstance(turn, Message) and isinstance(turn.content, str) else getattr(turn, "content", None)
        if not isinstance(parts, tuple) or not all(isinstance(part, (Text, *MEDIA_PARTS, Shape)) for part in parts):
            message = f"{name} made a turn whose content is no text and no tuple of parts"
            raise Reject("transform_error", message, f"messages[{i}]")
    pictures = len(record.images)
    shapes = (part for turn in record.messages for part in turn.content if isinstance(part, Shape))
    if any(not 0 <= shape.image < pictures for shape in shapes):
        raise Reject("transform_error", f"{name} made a box of a picture that the record lacks")
