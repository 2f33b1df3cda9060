"""The parts of the docs that are made from the code, as text; tools/docs writes them, tests/test_docs.py compares."""

import ast
import inspect
import io
import os
import pty
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from lmms.configs.by_part import PARTS
from lmms.configs.help import field_help
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.train import TrainConfig
from lmms.configs.stores.store import setting_text
from lmms.configs.typed import expected, without_none
from lmms.prep.reject import REASONS
from lmms.train.watch.metrics import StepLog

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    ("prep", "build-shards"),
    ("inspect", "shard"),
    ("inspect", "verify"),
    ("inspect", "order"),
    ("inspect", "step"),
    ("inspect", "run"),
    ("train",),
    ("export",),
    ("demo",),
)
_WIDTH = 100


def write_all(with_demo: bool) -> None:
    """Write every made part into its file."""
    (ROOT / "docs" / "cli.md").write_text(cli_page(), encoding="utf-8")
    (ROOT / "docs" / "settings.md").write_text(settings_page(), encoding="utf-8")
    (ROOT / "docs" / "api.md").write_text(api_page(), encoding="utf-8")
    path = ROOT / "docs" / "records.md"
    path.write_text(filled(path.read_text(encoding="utf-8"), "reasons", reasons_table(REASONS)), encoding="utf-8")
    path = ROOT / "docs" / "metrics.md"
    path.write_text(filled(path.read_text(encoding="utf-8"), "metrics", metrics_table()), encoding="utf-8")
    if with_demo:
        path = ROOT / "README.md"
        path.write_text(filled(path.read_text(encoding="utf-8"), "demo", demo_view()), encoding="utf-8")


def filled(page: str, name: str, text: str) -> str:
    """The page with `text` between its markers <!-- name: ... --> and <!-- /name -->."""
    pattern = re.compile(rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
    result, replaced = pattern.subn(lambda match: match[1] + text + match[2], page)
    if replaced != 1:
        raise ValueError(f"the page has {replaced} places for {name!r}, expected 1")
    return result


def reasons_table(reasons: Mapping[str, str]) -> str:
    """Reason and meaning, in the order of REASONS."""
    rows = [f"| `{reason}` | {meaning} |" for reason, meaning in reasons.items()]
    return "\n".join(["| reason | meaning |", "|---|---|", *rows]) + "\n"


def metrics_table() -> str:
    """Key and meaning, in the order of a line of metrics.jsonl."""
    keys = {"grad_norms": "`, `".join(f"grad_norm_{part}" for part in PARTS)}
    rows = [f"| `{keys.get(name, name)}` | {text} |" for name, text in field_help(StepLog).items()]
    return "\n".join(["| key | meaning |", "|---|---|", *rows]) + "\n"


def api_page() -> str:
    """docs/api.md: every public name of the three packages, with its signature and its doc string."""
    parts = ["# Python\n", "Made by `tools/docs` from the code. What is listed here is public; the rest may change.\n"]
    for package in ("lmms.configs", "lmms.prep", "lmms.train"):
        module = import_module(package)
        names = sorted(module.__all__, key=lambda name: (name[0].isupper(), name))
        parts += [f"## {package}\n", (module.__doc__ or "").strip() + "\n"]
        parts += [line for name in names for line in _api_lines(name, getattr(module, name))]
    return "\n".join(parts) + "\n"


def _api_lines(name: str, value: Any) -> Iterator[str]:
    """A public name: a heading with its signature, its doc string, and its fields or methods."""
    yield f"### `{name}{signature_text(value) if inspect.isfunction(value) else ''}`\n"
    yield _unwrapped(inspect.getdoc(value) or "") + "\n"
    if not isinstance(value, type):
        return
    if is_dataclass(value):
        helps = field_help(value)
        for field in fields(value):
            text = _unwrapped(helps.get(field.name, ""))
            yield f"- `{field.name}`: {text}" if text else f"- `{field.name}`"
        yield ""
    for method, function in vars(value).items():
        if inspect.isfunction(function) and not method.startswith("_"):
            yield f"- `{method}{signature_text(function)}`: {_unwrapped(inspect.getdoc(function) or '')}\n"


def signature_text(function: Callable[..., Any]) -> str:
    """Parameters and result of a function as its source has them."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef)
    arguments = ast.unparse(node.args).removeprefix("self, ").removeprefix("self")
    result = ast.unparse(node.returns) if node.returns else "None"
    return f"({arguments})" + (f" -> {result}" if result != "None" else "")


def _unwrapped(text: str) -> str:
    """A doc string whose lines are paragraphs; indented blocks stay as they are."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(part if part.startswith("    ") else " ".join(part.split()) for part in paragraphs)


def cli_page() -> str:
    """docs/cli.md: the help text of every command."""
    parts = ["# Commands\n", "Made by `tools/docs` from the help texts; `tests/test_docs.py` holds it to them.\n"]
    for command in COMMANDS:
        parts.append(f"## lmms {' '.join(command)}\n\n```text\n{help_text(command)}```\n")
    return "\n".join(parts)


def settings_page() -> str:
    """docs/settings.md: every key of a build and of a run, from the doc strings under the fields."""
    parts = [
        "# Settings\n",
        "Made by `tools/docs` from the texts of the settings; `tests/test_docs.py` compares.\n",
    ]
    parts += _settings_tables("A build: `lmms prep build-shards`", PrepConfig, "")
    parts += _settings_tables("A run: `lmms train`", TrainConfig, "")
    return "\n".join(parts)


def _settings_tables(title: str, kind: Any, section: str) -> Iterator[str]:
    """The table of a config, then the tables of its sections."""
    texts, hints = field_help(kind), get_type_hints(kind)
    rows, below = ["| key | value | default | meaning |", "|---|---|---|---|"], []
    for field in fields(kind):
        key, hint = section + field.name, without_none(hints[field.name])
        inner = get_args(hint)[0] if get_origin(hint) is tuple else hint
        inner = next(filter(is_dataclass, (inner, *get_args(inner))), inner)  # of X | str the X
        if is_dataclass(inner):
            below.append((f"`{key}`", inner, f"{key}[]." if inner is not hint else f"{key}."))
        if is_dataclass(hint):
            continue
        cells = (f"`{key}`", expected(hints[field.name]), _default(field), texts[field.name])
        rows.append("| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |")
    yield f"## {title}\n\n{kind.__doc__}\n\n" + "\n".join(rows) + "\n"
    for below_title, inner, path in below:
        yield from _settings_tables(below_title, inner, path)


def _default(field: "Field[Any]") -> str:
    """The default as in a run file, or `required`; empty where the field's text tells the default."""
    if field.default is MISSING:
        return "required" if field.default_factory is MISSING else ""
    return "" if field.default in (None, ()) else f"`{setting_text(field.default)}`"


@cache
def help_text(command: tuple[str, ...]) -> str:
    """What `lmms COMMAND --help` prints, 100 columns wide and without colours."""
    environment = {**os.environ, "COLUMNS": str(_WIDTH), "TERMINAL_WIDTH": str(_WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    run = [sys.executable, "-m", "lmms.cli", *command, "--help"]
    text = subprocess.run(run, env=environment, capture_output=True, check=True, text=True).stdout
    return "\n".join(line.rstrip() for line in text.strip("\n").split("\n")) + "\n"


def demo_view() -> str:
    """The demo's last screen on a real (pseudo) terminal, as an SVG file that the page shows."""
    from rich.console import Console
    from rich.text import Text

    main, terminal = pty.openpty()
    environment = {
        **os.environ,
        "COLUMNS": str(_WIDTH),
        "LINES": "50",
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
    }
    run = [sys.executable, "-m", "lmms.cli", "demo"]
    process = subprocess.Popen(run, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    output = b""
    while True:
        try:
            output += os.read(main, 2**16)
        except OSError:  # the terminal is gone: the demo has ended
            break
    if process.wait():
        raise RuntimeError(f"the demo failed:\n{output.decode()[-2000:]}")
    screen = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True)
    for line in _settled(output.decode()).split("\n"):
        screen.print(Text.from_ansi(line))
    screen.save_svg(str(ROOT / "docs" / "demo.svg"), title="uv run lmms demo")
    return "![uv run lmms demo](docs/demo.svg)\n"


def _settled(output: str) -> str:
    """Terminal output without the states of live bars that were overwritten."""
    lines: list[str] = []
    for piece in output.replace("\r\n", "\n").split("\n"):
        # A live bar moves back over its line before the bar is drawn again: only the last drawing stays.
        ups = piece.count("\x1b[1A")
        for _ in range(ups):
            if lines:
                lines.pop()
        lines.append(re.sub(r"\x1b\[(?:\?25[lh]|[0-9]*[ABCDGK])", "", piece.split("\r")[-1]))
    return "\n".join(lines)
