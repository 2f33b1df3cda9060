"""A chat template, compiled as transformers does (utils/chat_template_utils.py), without importing transformers."""

import json
from dataclasses import dataclass
from typing import Any, NoReturn

import jinja2
import jinja2.meta
import jinja2.runtime
import jinja2.utils
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lmms.configs.errors import ModelError

_GIVEN = ("messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now")
"""Variables of a template that are no options of the user: the program sets them."""


_DICT_METHODS = frozenset(dir(dict))
_HARMLESS = (str, jinja2.runtime.LoopContext, jinja2.utils.Namespace)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A compiled template, and what it reads."""

    template: jinja2.Template
    variables: frozenset[str]
    """Names that whoever renders may set."""
    keys: frozenset[str]
    """Keys of messages and parts that it looks at."""

    @property
    def options(self) -> frozenset[str]:
        """Keywords that a user may set."""
        return frozenset(name for name in self.variables.difference(_GIVEN) if not name.endswith("_token"))

    @property
    def reads_tools(self) -> bool:
        """Whether the template has a place for tools and calls of them."""
        return "tools" in self.variables and "tool_calls" in self.keys


def compile_template(source: str) -> ChatTemplate:
    """The template, sandboxed. It has no clock (strftime_now): the same records must give the same ids on every day."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = _raise_exception
    try:
        tree = environment.parse(source)
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(f"the chat template is not valid Jinja: {error} (line {error.lineno})") from error
    attributes = {node.attr for node in tree.find_all(jinja2.nodes.Getattr)}
    constants = {node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)}
    variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
    return ChatTemplate(template, variables, frozenset(attributes | constants))


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with short ways to the same answers for the values that chat templates read most."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """The value under a key of a message, which is no name of a method of dicts; else as the sandbox does."""
        if type(obj) is dict and attribute in obj and attribute not in _DICT_METHODS:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute: texts, loops and namespaces have no unsafe ones but _names."""
        if type(obj) in _HARMLESS:
            return not attr.startswith("_")
        return super().is_safe_attribute(obj, attr, value)


class _GenerationBlock(jinja2.ext.Extension):
    """{% generation %} marks what the model writes; targets are found by turns here, so only its content counts."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 reads a plain set)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class MarkedJson(dict[str, Any]):
    """A JSON object that a template prints as a mark."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark


def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """The filter `tojson` of chat templates: no escapes for HTML, other letters as they are."""
    if isinstance(value, MarkedJson):
        return value.mark
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
