"""Help texts of settings: the docstring under each field is the text for the code, the terminal and the docs."""

import ast
import inspect
from dataclasses import is_dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from lmms.configs.ranges import bounds_of


@cache
def field_help(config: type) -> dict[str, str]:
    """Field name -> the string that stands under it in the source of a config dataclass, with the range of a number.

    Fields of a dataclass that `config` extends come first.
    """
    (definition,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(definition, ast.ClassDef)
    hints = get_type_hints(config, include_extras=True)
    texts = {name: text for base in config.__bases__ if is_dataclass(base) for name, text in field_help(base).items()}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            assert isinstance(below.value, ast.Constant)
            name = field.target.id
            texts[name] = inspect.cleandoc(str(below.value.value)) + _range(hints[name])
    return texts


def _range(hint: Any) -> str:
    """The range of a number, or of each number in a list or a mapping, as one more sentence."""
    if get_origin(hint) is Annotated:
        return f" Range: {bounds_of(get_args(hint)[1:])}."
    return next(filter(None, map(_range, get_args(hint))), "")
