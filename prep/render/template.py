"""A chat template, compiled as transformers does (utils/chat_template_utils.py), without importing transformers."""

import json
from collections.abc import Iterable, Iterator, Sequence
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
    own_names: frozenset[str]
    """Names that the template sets before it reads them: a value from outside would be lost, or leak into a branch."""
    keys: frozenset[str]
    """Keys of messages and parts that it looks at."""

    @property
    def options(self) -> frozenset[str]:
        """Keywords that a user may set."""
        free = self.variables.difference(_GIVEN, self.own_names)
        return frozenset(name for name in free if not name.endswith("_token"))

    def refused(self, options: Iterable[str]) -> str:
        """What is wrong with the first option that a user may not set, as a sentence; "" if there is none."""
        for option in options:
            if option not in self.options:
                known = ", ".join(sorted(self.options)) or "no options"
                why = "sets {!r} itself" if option in self.own_names else "does not read {!r}"
                return f"the chat template {why.format(option)}; it reads {known}"
        return ""

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
    return ChatTemplate(template, variables, _set_first(tree), frozenset(attributes | constants))


def _set_first(tree: jinja2.nodes.Node) -> frozenset[str]:
    """Names whose first mention, in the order of evaluation, gives them a value."""
    first: dict[str, str] = {}
    for name in _mentions(tree):
        first.setdefault(name.name, name.ctx)
    return frozenset(name for name, kind in first.items() if kind != "load")


def _mentions(node: jinja2.nodes.Node) -> Iterator[jinja2.nodes.Name]:
    """The names in a part of a template, in the order of evaluation, but for those of a loop or macro of its own."""
    if isinstance(node, jinja2.nodes.Name):
        yield node
    children = list(node.iter_child_nodes())
    within: Sequence[jinja2.nodes.Node] = ()
    if isinstance(node, jinja2.nodes.For):
        yield from _mentions(node.iter)
        children.remove(node.iter)
        within = [node.target]
    elif isinstance(node, jinja2.nodes.Macro | jinja2.nodes.CallBlock):
        within = node.args
    elif isinstance(node, jinja2.nodes.Assign):
        children.reverse()  # the value before the name that gets the value
    hidden = {name.name for each in within for name in _mentions(each)}
    for child in children:
        yield from (name for name in _mentions(child) if name.name not in hidden)


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


_ENCODER = json.JSONEncoder(ensure_ascii=False)
"""json.dumps would make an encoder for each value."""


def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """The filter `tojson` of chat templates: no escapes for HTML, other letters as they are."""
    if isinstance(value, MarkedJson):
        return value.mark
    if not ensure_ascii and indent is None and not options:
        return _ENCODER.encode(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
