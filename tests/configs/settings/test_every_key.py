"""Every key of the run file and of the build: what is wrong is refused with the key, the value and what is expected."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import pytest

from lmms.configs.errors import ConfigError
from lmms.configs.load import load_config
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.train import TrainConfig

RUN: dict[str, Any] = {"model": {"path": "m"}, "data": {"shards": "s"}, "output": "o", "max_steps": 1}
MIXTURE: dict[str, Any] = {**RUN, "data": {"mixture": [{"shards": "s"}]}}
BUILD: dict[str, Any] = {"sources": ["a.jsonl"], "model": "m", "seq_len": 128, "out": "o"}
LISTS: dict[str, list[object]] = {"betas": [0.9, 0.95]}
"""Those of more than one item."""
ANY_INTEGER = {"seed"}
"""Numbers of which every integer is one."""


class Key(NamedTuple):
    """Where a single value stands, from the top; a list's or a mapping's item with its place."""

    root: type
    path: tuple[str | int, ...]
    hint: Any
    """Without None."""

    @property
    def name(self) -> str:
        """The dotted key, without the place of an item."""
        return ".".join(step for step in self.path if isinstance(step, str) and step != "default")

    def refusal(self, value: object) -> str:
        """The message that refuses this value in a run or build that is right but for it."""
        settings: Any = deepcopy(BUILD if self.root is PrepConfig else MIXTURE if "mixture" in self.path else RUN)
        if self.name in ("max_epochs", "max_tokens"):
            del settings["max_steps"]
        if self.path[0] == "eval":
            settings["eval"] = {"shards": "held-out"}
        node = settings
        for step, below in zip(self.path, self.path[1:], strict=False):
            if isinstance(step, str):
                node.setdefault(step, deepcopy(LISTS.get(step, [None])) if isinstance(below, int) else {})
            node = node[step]
        node[self.path[-1]] = value
        with pytest.raises(ConfigError) as caught:
            load_config(self.root, None, values=settings)
        return str(caught.value)


def _keys(root: type, hint: Any, path: tuple[str | int, ...]) -> Iterator[Key]:
    if type(None) in get_args(hint):  # X | None, or X | Y | None
        for kind in get_args(hint):
            if kind is not type(None):
                yield from _keys(root, kind, path)
    elif is_dataclass(hint):
        for field in fields(hint):
            yield from _keys(root, get_type_hints(hint)[field.name], (*path, field.name))
    elif get_origin(hint) is tuple:
        yield from _keys(root, get_args(hint)[0], (*path, 0))
    elif get_origin(hint) is dict:
        yield from _keys(root, get_args(hint)[1], (*path, "default"))
    else:
        yield Key(root, path, hint)


KEYS = [key for root in (TrainConfig, PrepConfig) for key in _keys(root, root, ())]


def every(*hints: object) -> pytest.MarkDecorator:
    """The keys of these types."""
    found = [key for key in KEYS if key.hint in hints or get_origin(key.hint) in hints]
    return pytest.mark.parametrize("key", found, ids=[f"{key.root.__name__}-{key.name}" for key in found])


def test_every_section_has_keys_here() -> None:
    sections = {key.path[0] for key in KEYS if key.root is TrainConfig}
    assert sections == {field.name for field in fields(TrainConfig)}
    assert {key.path[0] for key in KEYS if key.root is PrepConfig} == {field.name for field in fields(PrepConfig)}


@every(str, bool, int, float, Literal)
def test_a_value_of_another_type_is_refused(key: Key) -> None:
    message = key.refusal({"a": 1}) if key.path[-1] != "default" else key.refusal([1])
    assert key.name in message.replace("[0]", "")
    assert "(a mapping)" in message or "(a list)" in message
    assert "expected" in message


@every(Literal)
def test_a_word_that_is_no_choice_is_refused_with_the_choices(key: Key) -> None:
    message = key.refusal("neither")
    assert key.name in message.replace("[0]", "")
    assert "'neither'" in message
    assert all(choice in message for choice in get_args(key.hint))


@every(int, float)
def test_a_number_below_its_range_is_refused(key: Key) -> None:
    if key.name in ANY_INTEGER:
        return
    message = key.refusal(-1)
    assert key.name in message.replace("[0]", "")
    assert "-1" in message
    assert "expected" in message


@every(float)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused(key: Key, value: float) -> None:
    message = key.refusal(value)
    assert key.name in message.replace("[0]", "")
    assert str(value) in message
    assert "expected a finite number" in message


@every(int, bool)
def test_half_a_number_is_refused(key: Key) -> None:
    assert "0.5 (a number), expected" in key.refusal(0.5)


@every(str)
def test_an_empty_string_is_refused(key: Key) -> None:
    message = key.refusal("")
    assert key.name in message.replace("[0]", "")
    assert "'' (an empty string), expected a string" in message.replace("a list, each item ", "")


@every(str, bool, int, float, Literal)
def test_a_misspelled_key_is_refused_with_the_nearest(key: Key) -> None:
    place = max(i for i, step in enumerate(key.path) if isinstance(step, str) and step != "default")
    word = str(key.path[place])
    misspelled = Key(key.root, (*key.path[:place], word + "x"), key.hint)
    message = misspelled.refusal(1)
    assert f"unknown key {'.'.join((*key.name.split('.')[:-1], word + 'x'))!r}" in message.replace("[0]", "")
    assert f"did you mean {'.'.join((*key.name.split('.')[:-1], word))!r}" in message.replace("[0]", "")
