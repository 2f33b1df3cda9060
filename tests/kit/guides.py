"""The names of settings that a guide of a training framework (Markdown) tells its users."""

import re
import textwrap
from collections.abc import Iterator

import yaml

_FENCE = re.compile(r"^([ ]*)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_NAME = r"[a-z_]\w*(?:\.[a-z_]\w*)*|[A-Z][A-Z0-9_]*"
_FILE = re.compile(r".*\.(md|json|jsonl|yaml|py|sh)")


def guide_keys(text: str) -> set[str]:
    """Dotted keys of YAML and JSON blocks, of tables and lists; options, overrides and variables of command lines;
    names in code spans that a value, an underscore or a dot shows to be settings."""
    blocks = [(kind, textwrap.dedent(body)) for _, kind, body in _FENCE.findall(text)]
    prose = _FENCE.sub("", text)
    keys = {*_table_keys(prose), *_list_keys(prose), *_span_keys(prose)}
    for kind, body in blocks:
        if kind in ("yaml", "json"):
            keys |= set(_node_keys(yaml.compose(body)))
        elif kind in ("bash", "sh"):
            keys |= set(_command_keys(body))
    return keys


def _node_keys(node: yaml.Node, above: str = "") -> Iterator[str]:
    """Dotted keys without children of their own; also of a key that stands there twice. Items of lists add nothing."""
    inner = [item for item in getattr(node, "value", ()) if isinstance(item, yaml.MappingNode | yaml.SequenceNode)]
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _node_keys(value, f"{above}.{key.value}" if above else key.value)
    elif isinstance(node, yaml.SequenceNode) and inner:
        for item in inner:
            yield from _node_keys(item, above)
    elif above:
        yield above


def _command_keys(body: str) -> Iterator[str]:
    commands = re.sub(r"(^|\s)#.*", "", body)
    yield from re.findall(r"(?<!\S)--[a-z][\w-]*", commands)
    yield from re.findall(rf"(?<!\S)({_NAME})=", commands)


def _table_keys(prose: str) -> Iterator[str]:
    """First column of each row; in one of them a value follows the name."""
    yield from re.findall(r"^\| ([a-z]\w*\.[\w.]+)(?::[^|]*)? \|", prose, re.MULTILINE)


def _list_keys(prose: str) -> Iterator[str]:
    """The names with which items of a list begin: - `a.b`: ... and - **a/b**: ..."""
    for code, bold in re.findall(r"^- (?:`([^`]+)`|\*\*([^*]+)\*\*):", prose, re.MULTILINE):
        yield from (name for name in (code or bold).split("/") if re.fullmatch(_NAME, name))


def _span_keys(prose: str) -> Iterator[str]:
    """`name: value`, `name=value`, `a_name`, `a.name`; what stands in (e.g., ...) are values."""
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"\(e\.g\.[^)]*\)", "", prose)):
        yield from re.findall(rf"(?<!\S)({_NAME})\s*[:=]", span)
        if re.fullmatch(_NAME, span) and re.search("[_.]", span) and not _FILE.fullmatch(span):
            yield span
