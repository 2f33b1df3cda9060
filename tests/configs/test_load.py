"""Run files: what wins, what is refused and with which words; every error names the place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms.configs.errors import ConfigError
from lmms.configs.help import field_help
from lmms.configs.load import load_config, to_yaml
from lmms.configs.ranges import Range
from lmms.configs.settings.data import DataConfig
from lmms.configs.settings.optim import OptimConfig
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.train import TrainConfig

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "presets"


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    """Nested keys, one of them required."""

    name: str
    rate: float = 0.5
    pair: tuple[int, float] = (1, 2.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    """One field of every supported kind."""

    inner: Inner
    count: int
    others: tuple[Inner, ...] = ()
    mode: Literal["fast", "slow"] = "fast"
    flag: bool = False
    limit: int | None = None
    extra: Inner | None = None
    words: tuple[str, ...] = ()


REQUIRED = ("inner.name=x", "count=1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """No key is required."""

    rate: float = 0.0
    text: str = ""
    flag: bool = False
    limit: int | None = None


def write(folder: Path, **files: str) -> Path:
    """NAME=TEXT -> NAME.yaml; the path of the last."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{list(files)[-1]}.yaml"


def refused(kind: type, file: Path | None, overrides: tuple[str, ...] = (), **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(kind, file, overrides, values)
    return str(caught.value)


# What wins


def test_a_file_sets_every_kind_of_value(tmp_path: Path) -> None:
    text = """
        inner: {name: a, rate: 1, pair: [3, 4]}
        count: 7
        others: [{name: b}, {name: c, rate: .5e1}]
        mode: slow
        flag: true
        limit: null
        extra: {name: d}
        words: [e, "7"]
    """
    assert load_config(Outer, write(tmp_path, run=text)) == Outer(
        inner=Inner(name="a", rate=1.0, pair=(3, 4.0)),
        count=7,
        others=(Inner(name="b"), Inner(name="c", rate=5.0)),
        mode="slow",
        flag=True,
        extra=Inner(name="d"),
        words=("e", "7"),
    )


def test_an_int_becomes_a_float_where_a_float_is_declared() -> None:
    rate = load_config(Numbers, None, ["rate=3"]).rate
    assert (rate, type(rate)) == (3.0, float)


def test_options_win_over_overrides_over_the_file_over_its_parents_over_defaults(tmp_path: Path) -> None:
    parent = "inner: {name: parent, rate: 0.1, pair: [9, 9]}\ncount: 1\nlimit: 1\nmode: slow"
    file = write(tmp_path, parent=parent, run="extends: parent.yaml\ninner: {rate: 0.2}\ncount: 2\nlimit: 2")
    config = load_config(Outer, file, ["count=3", "limit=3", "limit=4"], {"limit": 5, "inner.name": "option"})
    expected = Inner(name="option", rate=0.2, pair=(9, 9.0))
    assert config == Outer(inner=expected, count=3, limit=5, mode="slow")


def test_of_several_parents_the_later_wins_and_lists_are_replaced(tmp_path: Path) -> None:
    files = {"a": "text: a\nlimit: 1", "b": "text: b", "run": "extends: [a.yaml, b.yaml]"}
    assert load_config(Numbers, write(tmp_path, **files)) == Numbers(text="b", limit=1)
    words = {"c": "words: [a, b]", "run": "extends: [c.yaml]\nwords: [c]"}
    assert load_config(Outer, write(tmp_path, **words), REQUIRED).words == ("c",)


def test_extends_is_relative_to_the_file_that_says_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, base="limit: 4")
    write(tmp_path / "deep", middle="extends: ../base.yaml\nrate: 1e-6")
    assert load_config(Numbers, write(tmp_path, run="extends: deep/middle.yaml")) == Numbers(limit=4, rate=1e-6)


def test_the_shared_root_of_a_diamond_does_not_undo_what_a_branch_set(tmp_path: Path) -> None:
    branches = {"left": "extends: root.yaml\ntext: left", "right": "extends: root.yaml\nlimit: 2"}
    file = write(tmp_path, root="text: root\nrate: 1", **branches, run="extends: [left.yaml, right.yaml]")
    assert load_config(Numbers, file) == Numbers(text="left", limit=2, rate=1.0)


def test_paths_in_a_file_stay_as_they_are(tmp_path: Path) -> None:
    file = write(tmp_path, run="model: {path: ../m}\ndata: {shards: d}\noutput: ~/o\nmax_steps: 1")
    config = load_config(TrainConfig, file)
    assert (config.model.path, config.data.shards, config.output) == ("../m", "d", "~/o")


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert load_config(Numbers, write(tmp_path, run="# nothing\n")) == Numbers()


# Scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-6", 1e-6), ("1E+3", 1000.0), ("-.5", -0.5), ("2.", 2.0), ("010", 10.0), ("+7", 7.0), ("1.5e3", 1500.0)],
)
def test_numbers(text: str, value: float) -> None:
    assert load_config(Numbers, None, [f"rate={text}"]).rate == value


@pytest.mark.parametrize(
    "text", ["yes", "no", "on", "off", "n", "2026-01-01", "1:30", "0x1f", "1_000", "<<", ".inf", "="]
)
def test_what_only_yaml_1_1_takes_for_something_else_is_a_string(text: str) -> None:
    assert load_config(Numbers, None, [f"text={text}"]).text == text


@pytest.mark.parametrize(("text", "value"), [("true", True), ("True", True), ("false", False)])
def test_booleans(text: str, value: bool) -> None:
    assert load_config(Numbers, None, [f"flag={text}"]).flag is value


@pytest.mark.parametrize("text", ["~", "null"])
def test_null_unsets_an_optional_value(text: str) -> None:
    assert load_config(Numbers, None, ["limit=3", f"limit={text}"]).limit is None


def test_an_override_may_hold_an_equals_sign_a_list_or_a_mapping() -> None:
    config = load_config(Outer, None, ["inner={name: a=b}", "inner.rate=2", "words=[a, b]", "count=1"])
    assert config == Outer(inner=Inner(name="a=b", rate=2.0), words=("a", "b"), count=1)


# What is refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("count=1.0", "count is 1.0 (a number), expected an integer"),
        ("count=true", "count is True (a boolean), expected an integer"),
        ("count=x", "count is 'x' (a string), expected an integer"),
        ("flag=1", "flag is 1 (an integer), expected true or false"),
        ("flag=yes", "flag is 'yes' (a string), expected true or false"),
        ("limit=x", "limit is 'x' (a string), expected an integer or null"),
        ("mode=medium", "mode is 'medium' (a string), expected one of fast, slow"),
        ("words=a", "words is 'a' (a string), expected a list, each item a string"),
        ("words=[a, 1]", "words[1] is 1 (an integer), expected a string"),
        ("inner.name=null", "inner.name is null, expected a string"),
        ("inner.name=", "has no value; expected KEY=VALUE, with null to take a setting back"),
        ("count=100000000000000000000", "(an integer of more than 64 bits), expected an integer"),
        ("rate=1", "unknown key 'rate'; did you mean 'inner.rate'?"),
        ("inner.rate=fast", "inner.rate is 'fast' (a string), expected a finite number"),
        ("inner.rate=true", "inner.rate is True (a boolean), expected a finite number"),
        ("inner.rate=1e999", "inner.rate is inf (a number), expected a finite number"),
        ("inner.rate=.nan", "inner.rate is '.nan' (a string), expected a finite number"),
        ("inner.pair=[1]", "inner.pair is [1] (a list), expected a list of 2: an integer, a finite number"),
        ("inner.pair=[1.5, 2]", "inner.pair[0] is 1.5 (a number), expected an integer"),
        ("inner.rate.deep=1", "inner.rate is {'deep': 1} (a mapping), expected a finite number"),
        ("inner=3", "inner is 3 (an integer), expected a mapping of name, rate, pair"),
        ("extra=3", "extra is 3 (an integer), expected a mapping of name, rate, pair or null"),
        ("others=[{name: a, rate: x}]", "others[0].rate is 'x' (a string), expected a finite number"),
        ("inner.nam=x", "unknown key 'inner.nam'; did you mean 'inner.name'?"),
        ("contu=3", "unknown key 'contu'; did you mean 'count'?"),
        ("others=[{nam: a}]", "unknown key 'others[0].nam'; did you mean 'others[0].name'?"),
        ("extends=a.yaml", "unknown key 'extends'"),
        ("=1", "unknown key ''"),
        ("count", "has no '='; expected KEY=VALUE"),
        ("count=[", "line 1: expected the node content"),
        ("count=!!int 3", "tag 'tag:yaml.org,2002:int' is not supported"),
    ],
)
def test_a_wrong_override_is_refused_by_name(override: str, message: str) -> None:
    found = refused(Outer, None, (*REQUIRED, override))
    assert found.startswith(f"override {override!r}")
    assert message in found


def test_a_wrong_value_in_a_file_names_the_file_and_the_dotted_key(tmp_path: Path) -> None:
    file = write(tmp_path, base="inner: {rate: slow}", run="extends: base.yaml\ninner: {rate: 1}\ncount: 1")
    assert refused(Outer, file) == (
        f"{tmp_path / 'base.yaml'}: inner.rate is 'slow' (a string), expected a finite number"
    )


@pytest.mark.parametrize("text", ["optim:\n\tlr: 1e-5\n", "optim:\n  lr: 1e-5\n\teps: 1\n"])
def test_a_tab_in_a_file_is_named_with_what_to_use(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, run=text)
    line = 1 + text[: text.index("\t")].count("\n")
    assert refused(TrainConfig, file) == f"{file}, line {line}: a tab stands where YAML takes only spaces; use spaces"


def test_a_file_may_be_named_by_a_string(tmp_path: Path) -> None:
    file = write(tmp_path, run="limit: 7")
    assert load_config(Numbers, str(file)) == load_config(Numbers, file) == Numbers(limit=7)


def test_an_unknown_key_in_a_file_names_the_file_the_dotted_key_and_the_nearest(tmp_path: Path) -> None:
    file = write(tmp_path, run="model: {path: m}\noptim:\n  learning_rate: 1e-5\n  weight_decey: 0.1\n")
    assert refused(TrainConfig, file) == f"{file}: unknown key 'optim.learning_rate'; it is 'optim.lr' here"
    file = write(tmp_path, run="optim: {speed: 1}")
    assert refused(TrainConfig, file).startswith(f"{file}: unknown key 'optim.speed'; known: betas, decay_ratio, eps, ")
    file = write(tmp_path, run="optim: {weight_decey: 0.1}")
    assert refused(TrainConfig, file) == f"{file}: unknown key 'optim.weight_decey'; did you mean 'optim.weight_decay'?"


def test_a_wrong_option_is_refused() -> None:
    assert refused(Outer, None, REQUIRED, count="3") == "options: count is '3' (a string), expected an integer"


def test_every_missing_key_is_named_at_once(tmp_path: Path) -> None:
    found = refused(TrainConfig, None)
    assert "required but not set: model.path, output;" in found
    file = write(tmp_path, run="others: [{name: a}, {rate: 1}]\nextra: {}")
    assert refused(Outer, file).startswith(
        f"{file}: required but not set: inner.name, count, others[1].name, extra.name;"
    )


def test_a_number_outside_of_its_range_is_refused_with_its_file(tmp_path: Path) -> None:
    file = write(tmp_path, run="model: {path: m}\ndata: {shards: d}\noutput: o\nmax_steps: 0")
    assert refused(TrainConfig, file) == f"{file}: max_steps is 0, expected at least 1"


def test_settings_made_in_python_are_held_to_the_same_ranges_and_types() -> None:
    with pytest.raises(ConfigError, match=r"^data.global_packs is 0, expected 1 to 1,048,576$"):
        DataConfig(shards="s", global_packs=0)
    with pytest.raises(ConfigError, match=r"^seq_len is '128' \(a string\), expected an integer$"):
        PrepConfig(sources=("a.jsonl",), model="m", seq_len="128", out="o")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bounds", "words", "inside", "outside"),
    [
        (Range(1), "at least 1", [1, 2**40], [0]),
        (Range(0, 1), "0 to 1", [0, 0.5, 1], [-0.1, 1.1]),
        (Range(above=0), "above 0", [1e-9], [0, -1]),
        (Range(0, below=1), "at least 0 and below 1", [0, 0.99], [1, -0.1]),
        (Range(2**20, 2**31), "1,048,576 to 2,147,483,648", [2**20, 2**31], [2**20 - 1, 2**31 + 1]),
    ],
)
def test_a_range_says_what_it_holds(bounds: Range, words: str, inside: list[float], outside: list[float]) -> None:
    assert str(bounds) == words
    assert all(map(bounds.holds, inside))
    assert not any(map(bounds.holds, outside))


def test_the_help_of_a_number_ends_with_its_range() -> None:
    assert field_help(PrepConfig)["seq_len"] == "Tokens of a pack. Range: 1 to 4,194,304."
    assert field_help(OptimConfig)["lr"].endswith(" Range: above 0.")
    assert "Range" not in field_help(PrepConfig)["seed"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limit: 1\nrate: 2\nlimit: 3\n", "line 3: key 'limit' stands here a second time"),
        ("rate: 1\n  limit: 2\n", "line 2: mapping values are not allowed"),
        ("- a\n", "holds a list, expected keys and values"),
        ("text\n", "holds a str, expected keys and values"),
        ("? [a, b]\n: 1\n", "line 1: a key is not a plain name"),
        ("text: !!python/object:os.system x\n", "line 1: tag "),
        ("text: \x07\n", "special characters are not allowed"),
        ("limit: 1\n---\nlimit: 2\n", "line 2: "),
        ("extends: 3\n", "extends is 3, expected a path or a list of paths"),
        ("extends: [a, 3]\n", "extends is ['a', 3], expected a path or a list of paths"),
    ],
)
def test_a_malformed_file_is_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path, run=text)
    found = refused(Numbers, file)
    assert found.startswith(str(file))
    assert message in found


def test_a_key_that_stands_twice_below_another_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, run="optim:\n  lr: 1e-5\n  eps: 1e-8\n  lr: 2e-5\n")
    assert refused(TrainConfig, file) == f"{file}, line 4: key 'lr' stands here a second time"


def test_files_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    file = write(tmp_path, run="extends: gone.yaml")
    assert refused(Numbers, file) == f"{tmp_path / 'gone.yaml'} cannot be read: No such file or directory"
    assert refused(Numbers, tmp_path).startswith(f"{tmp_path} cannot be read: ")
    file.write_bytes(b"text: \xff")
    assert refused(Numbers, file).startswith(f"{file} is not UTF-8 (byte 6)")


def test_a_circle_of_extends_is_refused_with_its_chain(tmp_path: Path) -> None:
    file = write(tmp_path, c="extends: run.yaml", b="extends: [c.yaml]", run="extends: b.yaml")
    chain = " -> ".join(str(tmp_path / name) for name in ("run.yaml", "b.yaml", "c.yaml", "run.yaml"))
    assert refused(Numbers, file) == f"extends runs in a circle: {chain}"
    file = write(tmp_path, own="extends: own.yaml")
    assert refused(Numbers, file) == f"extends runs in a circle: {file} -> {file}"


# Round trips


awkward = st.sampled_from(["1e-6", "089", "0x1f", "yes", "null", " a", "a: b", "# c", "2026-01-01", "ü\u2028\n", "!x"])
texts = awkward | st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
integers = st.integers(-(2**63), 2**63 - 1)
inners = st.builds(
    Inner,
    name=texts,
    rate=st.floats(allow_nan=False, allow_infinity=False),
    pair=st.tuples(integers, st.floats(allow_nan=False, allow_infinity=False)),
)
outers = st.builds(
    Outer,
    inner=inners,
    count=integers,
    others=st.lists(inners, max_size=3).map(tuple),
    mode=st.sampled_from(["fast", "slow"]),
    flag=st.booleans(),
    limit=st.none() | integers,
    extra=st.none() | inners,
    words=st.lists(texts, max_size=3).map(tuple),
)


@settings(deadline=None)
@given(config=outers)
def test_to_yaml_round_trips(config: Outer, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("yaml") / "run.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(Outer, file) == config


def test_to_yaml_keeps_the_order_of_the_fields() -> None:
    text = to_yaml(load_config(TrainConfig, None, ["model.path=m", "data.shards=d", "output=o", "max_steps=3"]))
    assert text.startswith("model:\n  path: m\n  init: pretrained\n  init_from: null\n  precision: auto\n")
    assert text.index("data:") < text.index("output: o") < text.index("max_steps: 3") < text.index("optim:")
    assert "lr:\n    default: 1.0e-05\n" in text


# Presets


ONLY_THE_USER_KNOWS = {
    TrainConfig: ("data.shards=shards", "output=runs/one"),
    PrepConfig: ("sources=[chats.jsonl]", "model=Qwen/Qwen3-VL-2B-Instruct", "out=shards"),
}
"""What a preset leaves to the user; all else it sets. Files that start with _ are there to be extended."""


def preset_names() -> list[str]:
    return sorted(file.stem for file in PRESETS.glob("[!_]*.yaml"))


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_needs_only_what_the_user_knows(name: str) -> None:
    kind: type[PrepConfig] | type[TrainConfig] = PrepConfig if name.startswith("prep-") else TrainConfig
    preset = PRESETS / f"{name}.yaml"
    assert isinstance(load_config(kind, preset, ONLY_THE_USER_KNOWS[kind]), kind)
    keys = [override.partition("=")[0] for override in ONLY_THE_USER_KNOWS[kind]]
    required = [key for key in keys if key != "data.shards"]  # or a mixture
    assert f"required but not set: {', '.join(required)};" in refused(kind, preset)


def test_there_are_presets_of_both_kinds() -> None:
    names = preset_names()
    assert any(name.startswith("prep-") for name in names)
    assert sum(not name.startswith("prep-") for name in names) >= 5


PATHS: dict[str, Any] = {"sources": ("a.jsonl",), "model": "m", "seq_len": 128, "out": "o", "workers": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("images", "images"),
        ("007", "007"),
        ("a: b #c", "a: b #c"),
        ("[a, b/c]", ("a", "b/c")),
        ("'[a]'", "[a]"),
        ("null", None),
    ],
)
def test_a_setting_of_a_path_or_a_list_of_paths_takes_either(text: str, expected: Any) -> None:
    config = load_config(PrepConfig, None, [f"media_root={text}"], PATHS)
    assert config.media_root == expected
    assert load_config(PrepConfig, None, (), {**PATHS, "media_root": expected}) == config
    with pytest.raises(ConfigError, match=r"media_root.* expected a string or a list, each item a string or null"):
        load_config(PrepConfig, None, (), {**PATHS, "media_root": 7})
