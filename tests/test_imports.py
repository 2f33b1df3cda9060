"""The rooms and who may look into which: cli -> prep, train -> configs. Nothing imports cli; prep and train never meet.

Within each of the four, rooms stand on floors, and what needs no torch loads none: torch and transformers cost seconds
at every start, and gigabytes on a machine that only builds shards.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.kit.processes import HEAVY, command, libraries_after, loaded_after, loaded_by

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "configs": {"configs"},
    "prep": {"prep", "configs"},
    "train": {"train", "configs"},
    "cli": {"cli", "prep", "train", "configs"},
}
FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "configs": (
        ("errors", "lazy", "nested", "ranges", "room", "words"),
        ("files", "help", "stores", "typed", "yaml12"),
        ("contract",),
        ("by_part",),
        ("settings",),
        ("other_names",),
        ("load", "source_list"),
    ),
    "prep": (
        ("output", "planning", "progress", "reject", "tables"),
        ("rows", "shards"),
        ("video", "writer"),
        ("audio", "media"),
        ("records",),
        ("choice",),
        ("render", "sources", "transforms"),
        ("chunks", "sample", "unchanged"),
        ("first_records",),
        ("engine",),
        ("first_pass", "packing"),
        ("build_report",),
        ("build", "outlook"),
    ),
    "train": (
        ("data", "families", "parallel"),
        ("batch",),
        ("model",),
        ("optim", "watch"),
        ("checkpoint", "evaluation", "step"),
        ("due", "plan", "step_log"),
        ("plain_loop", "setup"),
        ("feeder",),
        ("loop",),
        ("run",),
    ),
    "cli": (
        ("settings", "ui"),
        ("build_words",),
        ("dry_run", "export", "inspect", "prep"),
        ("demo", "live"),
        ("train",),
        ("main",),
        ("__main__",),
    ),
}
"""House -> its rooms, folders and single files, from the ground floor up: a room imports those of lower floors."""
IN_ANOTHER_PROCESS = ("prep.video.by_torchcodec",)
"""Modules that a process of its own loads, and only where a user asks for the library."""
TORCH_FREE = ("train/data", "train/watch/metrics", "train/watch/history", "train/watch/curves", "train/watch/summary")
CONFIGS_LIBRARIES = {
    *("numpy", "xxhash", "yaml", "huggingface_hub"),
    *("PIL", "pillow_heif", "soundfile"),
    *("obstore", "fsspec", "paramiko", "ocifs", "oci", "databricks", "requests"),
}
"""All that the ground floor may load besides the standard library; the second line where a picture or sound is
opened, the third where a URL is read."""


def imported_modules(source: str) -> set[str]:
    """Full names of all modules that a source imports anywhere, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module == "lmms":
            names |= {f"lmms.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def imported_names(source: str) -> set[str]:
    """Modules that a source imports, and what it takes out of them as if that were modules."""
    names = imported_modules(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def forbidden_imports(room: str, source: str) -> list[str]:
    """The imports of a source that its room does not allow, sorted."""
    return sorted(name for name in imported_modules(source) if not is_allowed(room, name))


def is_allowed(room: str, name: str) -> bool:
    library, *inside = name.split(".")
    if library == "lmms":
        return bool(inside) and inside[0] in MAY_IMPORT[room]
    if room == "configs":
        return library in sys.stdlib_module_names | CONFIGS_LIBRARIES
    return library != "" and library not in MAY_IMPORT and (room != "prep" or library not in HEAVY)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_every_file_of_a_room_keeps_to_its_imports(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): forbidden_imports(room, file.read_text(encoding="utf-8")) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("room", "source", "forbidden"),
    [
        ("configs", "import json\nimport numpy as np\nfrom lmms.configs.errors import ConfigError", []),
        ("configs", "import polars", ["polars"]),
        ("configs", "from lmms.prep import plan", ["lmms.prep"]),
        ("prep", "def f():\n    from torch.nn import functional", ["torch.nn"]),
        ("prep", "if True:\n    import transformers", ["transformers"]),
        ("prep", "from lmms import train", ["lmms.train"]),
        ("prep", "import lmms", ["lmms"]),
        ("prep", "from train import order", ["train"]),
        ("prep", "from . import plan", ["."]),
        ("train", "import torch\nfrom lmms.prep.planning.tight import pack", ["lmms.prep.planning.tight"]),
        ("train", "import lmms.cli.ui", ["lmms.cli.ui"]),
        ("cli", "from lmms.prep import build\nfrom lmms.train import run\nimport torch", []),
    ],
)
def test_the_rule_sees(room: str, source: str, forbidden: list[str]) -> None:
    assert forbidden_imports(room, source) == forbidden


def lmms_modules(source: str) -> set[str]:
    """Modules of lmms that a source imports, without `lmms.`: `from lmms.train import run` names train.run."""
    names = {name.removeprefix("lmms.") for name in imported_names(source) if name.startswith("lmms.")}
    return {name for name in names if is_module(name)}


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def room_of(module: str) -> str | None:
    """`batch` of train.batch.loader; None for the house itself."""
    return (*module.split("."), None, None)[1]


def upward(house: str, floors: Sequence[Sequence[str]], room: str, source: str) -> list[str]:
    """What a source in a room imports of its house that stands on the same floor or above, sorted."""
    height = {name: number for number, floor in enumerate(floors) for name in floor}
    names = {name for name in lmms_modules(source) if name.split(".")[0] == house}
    return sorted(name for name in names if (to := room_of(name)) not in (None, room) and height[to] >= height[room])


def modules_of(place: str) -> dict[str, Path]:
    """Module -> file, of a folder or of one file without its ending."""
    path = ROOT / place
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


@pytest.mark.parametrize("house", FLOORS)
def test_a_room_imports_only_rooms_of_lower_floors(house: str) -> None:
    files = {name: file for name, file in modules_of(house).items() if room_of(name)}
    assert {room_of(name) for name in files} == {room for floor in FLOORS[house] for room in floor}
    found = {
        name: upward(house, FLOORS[house], str(room_of(name)), file.read_text("utf-8")) for name, file in files.items()
    }
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from lmms.train.data.order import Order\nfrom lmms.train.model import loss\nimport torch", []),
        ("from lmms.train.optim import rules", ["train.optim", "train.optim.rules"]),
        ("def f():\n    import lmms.train.run", ["train.run"]),
        ("from lmms.train import setup", ["train.setup"]),
        ("from lmms.train.checkpoint.read import read_state", ["train.checkpoint.read"]),
        ("from lmms.configs.settings.train import TrainConfig", []),
    ],
)
def test_an_arrow_upward_is_seen(source: str, expected: list[str]) -> None:
    assert upward("train", FLOORS["train"], "watch", source) == expected


def test_every_room_is_in_the_table_of_rooms() -> None:
    """The houses, their folders, and the presets, which are no package."""
    rooms = {str(file.parent.relative_to(ROOT)) for house in MAY_IMPORT for file in ROOT.glob(f"{house}/*/__init__.py")}
    page = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    table = re.findall(r"^\| `([\w/]+)` \|", page, re.MULTILINE)
    assert set(table) == {*rooms, *MAY_IMPORT, "configs/presets"}
    assert len(table) == len(set(table))


def circles(imports: Mapping[str, set[str]]) -> set[str]:
    """The modules that come back to themselves by way of their imports, and those above them."""
    left = {name: names - {name} for name, names in imports.items()}
    while lowest := {name for name, names in left.items() if not names & left.keys()}:
        left = {name: names for name, names in left.items() if name not in lowest}
    return set(left)


def test_no_module_imports_itself_by_way_of_others() -> None:
    """A package's `__init__` may offer what its modules have."""
    every = {name: file for house in FLOORS for name, file in modules_of(house).items() if file.stem != "__init__"}
    assert circles({name: lmms_modules(file.read_text("utf-8")) for name, file in every.items()}) == set()


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}


def test_no_test_imports_another_test() -> None:
    """What several need stands in tests/kit: running one module runs no other's code."""
    found = {
        str(file.relative_to(ROOT)): name
        for file in sorted((ROOT / "tests").rglob("*.py"))
        for name in imported_names(file.read_text("utf-8"))
        if name.startswith("tests.") and any(part.startswith("test_") for part in name.split("."))
    }
    assert found == {}


def test_a_fresh_process_that_loads_a_heavy_library_is_seen() -> None:
    assert loaded_after("import types, sys; sys.modules['torch'] = types.ModuleType('torch')") == {"torch"}


@pytest.mark.parametrize("places", [("prep",), TORCH_FREE], ids=["prep", "train"])
def test_what_needs_no_heavy_library_loads_none(places: tuple[str, ...]) -> None:
    modules = [module for place in places for module in modules_of(place) if module not in IN_ANOTHER_PROCESS]
    assert loaded_after("\n".join(f"import lmms.{module}" for module in modules)) == set()


def test_only_one_file_imports_pyarrow() -> None:
    files = [file for place in (*MAY_IMPORT, "tools") for file in (ROOT / place).rglob("*.py")]
    modules = {str(file.relative_to(ROOT)): imported_modules(file.read_text("utf-8")) for file in files}
    found = {file for file, names in modules.items() if any(name.partition(".")[0] == "pyarrow" for name in names)}
    assert found == {"prep/rows/arrow.py", "prep/rows/chunk.py"}  # the second names a type of it


@pytest.mark.parametrize("module", ["prep.build", "prep.writer", "train.data.shards", "train.data.verify"])
def test_what_reads_or_writes_tables_is_imported_without_a_library_for_them(module: str) -> None:
    """polars takes half a second to import, and tools/gpu/run starts where there is no pyarrow."""
    code = f"import sys, lmms.{module}\nassert not {{'polars', 'pyarrow'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_loads_no_heavy_library() -> None:
    assert loaded_after("import lmms.cli.main") == set()


@pytest.mark.parametrize("command", ["", "prep", "train", "inspect"])
def test_help_loads_no_heavy_library(command: str) -> None:
    assert loaded_by(*command.split(), "--help") == set()


@pytest.mark.parametrize("words", ["", "prep build-shards", "train", "inspect order", "demo"])
def test_help_loads_what_draws_a_terminal_and_nothing_else(words: str) -> None:
    """A fifth of a second in all; numpy alone would take a tenth more. typer checks options with pydantic,
    and rich loads attrs where another package brings it."""
    terminal = {
        "lmms",
        "typer",
        "rich",
        "shellingham",
        "markdown_it",
        "mdurl",
        "pygments",
        "annotated_doc",
        "yaml",
        "attr",
    }
    of_typer = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
    assert libraries_after(command(*words.split(), "--help")) - terminal - of_typer - {"cython_runtime"} == set()
