"""YAML as people write it: PyYAML's syntax, the scalars of YAML 1.2, and no key twice.

PyYAML follows YAML 1.1, where 1e-6 is a string, `no` is false and 010 is eight. Here true and false are the only
booleans, numbers are decimal and finite, everything else that is not null is a string. Tags are refused.
"""

import re
from typing import Any

import yaml

from lmms.configs.errors import ConfigError

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_MAX_DIGITS = 4000  # Python converts no longer integers; a longer number stays a text, which no number setting takes
_PREFIX = "tag:yaml.org,2002:"


def parse_yaml(text: str, origin: str) -> Any:
    """dict, list, str, int, float, bool or None. `origin` names the text in a ConfigError."""
    try:
        # BaseLoader gives every plain scalar the tag of a string, so any other tag was written by hand.
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        return None if node is None else _value(node, origin)
    except RecursionError:
        raise ConfigError(f"{origin}: nested too deep, or an alias that holds itself") from None
    except yaml.MarkedYAMLError as error:
        problem = error.problem or "not YAML"
        if r"'\t'" in problem:
            problem = "a tab stands where YAML takes only spaces; use spaces"
        raise _error(origin, error.problem_mark or error.context_mark, problem) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: {str(error).splitlines()[0]}") from None


def format_yaml(value: Any) -> str:
    """The inverse of parse_yaml, for plain values; tuples become lists."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes the strings that are numbers in YAML 1.2 only."""


def _represent_str(dumper: _Dumper, text: str) -> yaml.Node:
    # Without double quotes PyYAML writes these line breaks unchanged and then reads blanks.
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar(_PREFIX + "str", text, style)


_Dumper.add_representer(str, _represent_str)
_Dumper.add_implicit_resolver(_PREFIX + "float", re.compile(rf"(?:{_FLOAT.pattern})\Z"), list("-+.0123456789"))


def _value(node: yaml.Node, origin: str) -> Any:
    if node.tag.removeprefix(_PREFIX) not in ("map", "seq", "str"):
        raise _error(origin, node.start_mark, f"tag {node.tag!r} is not supported")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, origin)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, origin) for item in node.value]
    return _plain(node.value) if isinstance(node, yaml.ScalarNode) and node.style is None else node.value


def _mapping(node: yaml.MappingNode, origin: str) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _error(origin, key_node.start_mark, "a key is not a plain name")
        if key_node.value in mapping:
            raise _error(origin, key_node.start_mark, f"key {key_node.value!r} stands here a second time")
        mapping[key_node.value] = _value(value_node, origin)
    return mapping


def _plain(text: str) -> Any:
    """The value of an unquoted scalar."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text) and len(text) < _MAX_DIGITS:
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _error(origin: str, mark: Any, problem: str) -> ConfigError:
    return ConfigError(f"{origin}, line {mark.line + 1}: {problem}")
