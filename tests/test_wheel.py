"""The wheel: every file of the four rooms is in it; in an environment of its own it prints help and builds shards."""

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from lmms.configs.contract.manifest import open_dataset

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("configs", "prep", "train", "cli")
GUARD_S = 300
"""Ends what hangs."""

pytestmark = pytest.mark.skipif(shutil.which("uv") is None, reason="needs uv, which builds and installs the wheel")


def run(*command: object, folder: Path) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=GUARD_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, which has nothing that an earlier build left, by the setuptools that is installed here."""
    source = tmp_path_factory.mktemp("source")
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ("--wheel", "--offline", "--no-build-isolation", "--python", sys.executable)
    run("uv", "build", *options, "--out-dir", source / "dist", source, folder=source)
    (wheel,) = (source / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel in it, which borrows the libraries that are installed here."""
    environment = tmp_path_factory.mktemp("bare") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, folder=environment.parent)
    python = environment / "bin" / "python"
    run("uv", "pip", "install", "--offline", "--no-deps", "--python", python, wheel, folder=environment.parent)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return environment / "bin"


def test_every_file_of_the_rooms_is_in_the_wheel(wheel: Path) -> None:
    files = {
        f"lmms/{file.relative_to(ROOT).as_posix()}"
        for room in ROOMS
        for file in (ROOT / room).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("lmms/")}
    assert len(files) > 150
    assert packed == files


def test_type_checkers_are_told_that_each_package_has_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert {f"lmms/{room}/py.typed" for room in ROOMS} <= set(archive.namelist())


def test_an_installed_wheel_prints_help_and_builds_shards(commands: Path, tmp_path: Path) -> None:
    assert "prep" in run(commands / "lmms", "--help", folder=tmp_path)
    place = run(commands / "python", "-c", "import lmms.cli; print(lmms.cli.__path__[0])", folder=tmp_path).strip()
    assert Path(place).is_relative_to(commands.parent)
    turns = [{"role": "user", "content": "Say one"}, {"role": "assistant", "content": "one"}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    options = ("--model", Path(place, "demo", "model"), "--seq-len", 256, "--out", "shards", "--workers", 1)
    run(commands / "lmms", "prep", "build-shards", "chats.jsonl", *options, folder=tmp_path)
    assert open_dataset(tmp_path / "shards").manifest.counts["packed"] == 1
