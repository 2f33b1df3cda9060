"""The help text of a setting is the doc string under its field: one text for the code, the terminal and the docs."""

import ast
import inspect
from functools import cache


@cache
def field_help(config: type) -> dict[str, str]:
    """Field name -> the string that stands under it in the source of a config dataclass."""
    (definition,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            assert isinstance(below.value, ast.Constant)
            texts[field.target.id] = inspect.cleandoc(str(below.value.value))
    return texts
