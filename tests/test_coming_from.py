"""docs/coming-from.md names every setting of the guides, only settings of ours that exist, and files that load."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from lmms.configs.by_part import PARTS
from lmms.configs.errors import ConfigError
from lmms.configs.load import load_config
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.train import TrainConfig
from lmms.configs.typed import check
from lmms.configs.yaml12 import parse_yaml
from tests.kit.guides import guide_keys

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "coming-from.md").read_text()
GUIDES = {
    "LMMs-Engine": ("lmms-engine-readme.md", "lmms-engine-train.md"),
    "Qwen3-VL on ms-swift": ("qwen3-vl-training-guide.md",),
    "VeOmni": ("veomni-arguments.md",),
    "Synvo Engine": ("synvo-engine.md",),
}
"""Section of the page -> the guides that it answers."""
FILE_KEYS = ("extends",)
"""Keys of a file that are no settings; the examples use them."""


def sections(page: str) -> dict[str, str]:
    """Heading -> text of each section."""
    _, *found = re.split(r"^## (.*)\n", page, flags=re.MULTILINE)
    return dict(zip(found[::2], found[1::2], strict=True))


def rows(section: str) -> list[list[str]]:
    """The cells of the lines of a section's table, without its head."""
    lines = [line.strip("|").split("|") for line in section.split("\n") if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def missing(keys: set[str], section: str) -> list[str]:
    """Those that no first cell names, whole or as the end of a longer dotted name."""
    named = [re.split("[:=]", span)[0] for row in rows(section) for span in spans(row[0])]
    return sorted(key for key in keys if not any(f".{name}".endswith(f".{key}") for name in named))


@pytest.mark.parametrize("section", GUIDES)
def test_every_name_of_a_guide_has_a_line(section: str, shared: Path) -> None:
    for guide in GUIDES[section]:
        keys = guide_keys((shared / "reference" / guide).read_text())
        assert missing(keys, sections(PAGE)[section]) == [], guide


@pytest.mark.parametrize(
    ("guide", "count", "some"),
    [
        ("lmms-engine-readme.md", 15, {"datasets.data_folder", "use_rmpad", "--master_port"}),
        ("lmms-engine-train.md", 70, {"trainer_args.fsdp_config.reshard_after_forward", "filter_overlong", "HF_HOME"}),
        ("qwen3-vl-training-guide.md", 65, {"tuner.target_regex", "custom.augmentation.ops.params.hi", "extends"}),
        ("veomni-arguments.md", 79, {"train.init_device", "infer.top_p", "model.encode_target"}),
        ("synvo-engine.md", 40, {"config.model_config.model_class", "--fsdp_use_orig_params"}),
    ],
)
def test_the_names_of_a_guide_are_found(guide: str, count: int, some: set[str], shared: Path) -> None:
    keys = guide_keys((shared / "reference" / guide).read_text())
    assert some <= keys
    assert len(keys) >= count


def test_names_are_found_wherever_a_guide_puts_them() -> None:
    guide = """
Set `one_span`, `two: 2` or `three=3` (e.g., `no_value`), not `word`, `a_file.json` or `f()`; see `four.five`.
- `six.seven`: text
- **eight/nine**: text
| Name | Type |
| --- | --- |
| ten.eleven: meta | `str` |
   ```yaml
   twelve:
     - thirteen: {fourteen: [no, value]}
   twelve: 1  # twice
   ```
```json
[{"fifteen": {"sixteen": 0}}]
```
```bash
SEVENTEEN=1 run --eight-teen value nine.teen=20  # not --this
```
"""
    assert guide_keys(guide) == {
        *("one_span", "two", "three", "four.five", "six.seven", "eight", "nine", "ten.eleven"),
        *("twelve", "twelve.thirteen.fourteen", "fifteen.sixteen", "SEVENTEEN", "--eight-teen", "nine.teen"),
    }


def test_a_name_without_a_line_is_missed() -> None:
    table = "| theirs | ours | x |\n|---|---|---|\n| `a.b.c: 1`, `--d` | `theirs` | `e` |\n"
    assert missing({"c", "b.c", "a.b.c", "a.b", "--d", "e", "theirs", "c.b", "--a"}, table) == [
        *("--a", "a.b", "c.b", "e", "theirs"),
    ]


def own_keys(hint: Any, above: str = "") -> Iterator[str]:
    """Every dotted key below a config, through `| None`, lists of configs, and settings by part."""
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        for field in fields(hint):
            key = f"{above}{field.name}"
            yield key
            yield from own_keys(hints[field.name], f"{key}.")
    elif get_origin(hint) is dict:
        yield from (f"{above}{part}" for part in ("default", *PARTS))
    else:
        for inner in get_args(hint):
            yield from own_keys(inner, above)


@cache
def commands() -> dict[str, str]:
    """lmms command -> its help."""
    return sections((ROOT / "docs" / "cli.md").read_text())


@cache
def extras() -> list[str]:
    return list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def is_ours(span: str) -> bool:
    """Whether `key`, `key: value`, `lmms command --option`, `--option` or `lmms[extra]` is there today."""
    if extra := re.fullmatch(r"lmms\[(\w+)\]", span):
        return extra[1] in extras()
    if span.startswith(("lmms ", "--")):
        words = span.split()
        options = [word for word in words if word.startswith("--")]
        command = " ".join(word for word in words if word not in options)
        texts = [text for name, text in commands().items() if command in ("", name)]
        return any(all(re.search(rf"[│ ]{option} ", text) for option in options) for text in texts)
    key, colon, value = span.partition(": ")
    return span in FILE_KEYS or any(
        key in own_keys(kind) and (not colon or takes(kind, key, value)) for kind in (PrepConfig, TrainConfig)
    )


def takes(kind: type, key: str, value: str) -> bool:
    """Whether the setting takes this value."""
    nested = reduce(lambda inner, name: {name: inner}, reversed(key.split(".")), parse_yaml(value, key))
    try:
        check(kind, nested, "", "the page")
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("section", GUIDES)
def test_every_setting_that_is_called_ours_exists(section: str) -> None:
    assert [span for row in rows(sections(PAGE)[section]) for span in spans(row[1]) if not is_ours(span)] == []


@pytest.mark.parametrize(
    ("span", "exists"),
    [
        ("seq_len", True),
        ("data.mixture.weight", True),
        ("optim.lr.vision", True),
        ("optim.lr.visual", False),
        ("eval.every_steps", True),
        ("every_steps", False),
        ("model.init: random", True),
        ("model.init: zero", False),
        ("train: {vision: frozen}", True),
        ("train: {vision: off}", False),
        ("lmms train --print-config", True),
        ("lmms export --print-config", False),
        ("lmms fly", False),
        ("--nproc", True),
        ("--npro", False),
        ("extends", True),
        ("lmms[wandb]", True),
        ("lmms[wand]", False),
        ("gone", False),
    ],
)
def test_what_is_not_ours_is_noticed(span: str, exists: bool) -> None:
    assert is_ours(span) == exists


@pytest.mark.parametrize("section", GUIDES)
def test_every_line_has_an_answer_and_a_refusal_has_its_reason(section: str) -> None:
    table = rows(sections(PAGE)[section])
    assert len(table) > 40
    for theirs, ours, *rest in table:
        assert len(rest) == 1, theirs
        assert ours, theirs
        assert not ours.startswith("not offered") or re.match(r"not offered: \w", ours), theirs


@pytest.mark.parametrize("section", GUIDES)
def test_the_examples_load(section: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n# (\S+)\n(.*?)```", sections(PAGE)[section], re.DOTALL)
    assert {"prep.yaml", "run.yaml"} <= {name for name, _ in blocks}
    assert len(blocks) == sections(PAGE)[section].count("```") / 2
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    for name, _ in blocks:
        kind: type = PrepConfig if name.startswith("prep") else TrainConfig
        assert isinstance(load_config(kind, tmp_path / name), kind)
