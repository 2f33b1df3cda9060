"""The docs say what the code does: help texts, reasons, examples and the README's session are held to it."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from lmms.cli.demo.draw import draw_pictures
from lmms.configs.by_part import PARTS
from lmms.configs.contract.manifest import read_manifest
from lmms.configs.errors import ConfigError
from lmms.configs.load import load_config
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.sources import DEFAULT_READING, FormName, decide_reading
from lmms.configs.settings.transforms import TRANSFORM_NAMES
from lmms.configs.stores.store import LocalStore
from lmms.prep.build import build_shards
from lmms.prep.records.forms import FORMS, find_form, normal_form
from lmms.prep.records.shapes import Shape
from lmms.prep.reject import REASONS
from lmms.train.watch.metrics import line_of
from tests.kit.folders import tiny_model_folder
from tests.kit.logs import step_log
from tests.kit.media.boxes import samples, write_boxes
from tests.kit.model.models import tiny_model
from tests.kit.runs import write_run

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import made_docs  # noqa: E402  (tools are scripts, not a package)

LMMS = [sys.executable, "-m", "lmms.cli"]


def test_the_page_of_commands_is_what_help_prints() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == made_docs.cli_page()


def test_the_examples_for_clusters_are_sound_and_their_commands_are_known() -> None:
    page = (ROOT / "docs" / "engine.md").read_text()
    (script,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    (job,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    in_job = yaml.safe_load(job)["spec"]["entrypoint"]
    in_script = script.replace("\\\n", " ").partition(" -- ")[2]
    for command in (in_job, in_script):
        program, *words = shlex.split(command)
        assert program == "lmms"
        said = subprocess.run([*LMMS, *words, "--print-config"], capture_output=True, text=True, check=True).stdout
        assert yaml.safe_load(said)["engine"] == "ray"


def test_the_page_of_settings_has_every_key_with_its_range() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == made_docs.settings_page()
    assert "| `optim.warmup_ratio` | a finite number | `0.0` |" in page
    assert "| `data.mixture[].shards` | a string | required |" in page
    assert "Range: 0 to 1,024. |" in page


def test_the_page_of_python_is_what_the_doc_strings_say() -> None:
    assert (ROOT / "docs" / "api.md").read_text() == made_docs.api_page()


def test_the_page_of_records_lists_every_reason() -> None:
    page = (ROOT / "docs" / "records.md").read_text()
    assert page == made_docs.filled(page, "reasons", made_docs.reasons_table(REASONS))


def test_the_page_of_metrics_lists_every_key_of_a_line() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert page == made_docs.filled(page, "metrics", made_docs.metrics_table())
    cells = re.findall(r"^\| (`.+?`) \| .+ \|$", page, re.MULTILINE)
    log = replace(step_log(1), grad_norms=dict.fromkeys(PARTS, 1.0))
    assert [key for cell in cells for key in re.findall(r"`(\w+)`", cell)] == list(line_of(log))


def test_every_reason_that_the_code_gives_has_a_meaning_and_the_other_way_round() -> None:
    used = set()
    for path in (ROOT / "prep").rglob("*.py"):
        used |= set(re.findall(r'"([a-z0-9_]+)"', path.read_text())) if path.name != "reject.py" else set()
    assert set(REASONS) <= used
    given = set()
    for path in (ROOT / "prep").rglob("*.py"):
        given |= set(re.findall(r'Reject\(\s*"([a-z0-9_]+)"', path.read_text()))
    assert given <= set(REASONS)


def block(page: str, kind: str, number: int = 0) -> str:
    return re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)[number]


def test_the_session_of_the_readme_runs(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    session = next(b for b in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL) if "build-shards" in b)
    draw_pictures(tmp_path, "records", 60, 0)
    run = yaml.safe_load(block(readme, "yaml"))
    run["model"] = {"path": str(tiny_model_folder(tmp_path).rename(tmp_path / "tiny")), "init": "random"}
    run["data"]["workers"] = 0
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    environment = {**os.environ, "MODEL": str(tmp_path / "tiny"), "OMP_NUM_THREADS": "1"}
    commands = [line for line in session.split("\n") if line]
    assert [line.split()[1] for line in commands] == ["prep", "prep", "inspect", "inspect", "train", "export"]
    for line in commands:
        words = shlex.split(line.replace("$MODEL", environment["MODEL"]))
        result = subprocess.run([*LMMS, *words[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_the_loops_of_the_docs_run(tmp_path: Path) -> None:
    settings = write_run(tmp_path, "qwen3_vl")
    tiny_model("qwen3_vl").hf.save_pretrained(tmp_path / "model")
    run = {"max_steps": 2, "device": "cpu", "output": "run", "model": {"path": "model"}}
    run |= {"data": {"shards": "shards", "global_packs": 4}, "eval": {"shards": "shards", "every_steps": 2}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    assert Path(settings["data.shards"]) == tmp_path / "shards"
    page = (ROOT / "docs" / "loops.md").read_text()
    said = []
    for number in (0, 1):
        (tmp_path / "loop.py").write_text(block(page, "python", number))
        result = subprocess.run(
            [sys.executable, "loop.py"],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        said.append(re.findall(r"^(step \d|evaluation): loss \d", result.stdout, re.MULTILINE))
    assert said == [[], ["step 1", "step 2", "evaluation"]]
    assert (tmp_path / "after-3.pt").is_file()


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    code = block((ROOT / "README.md").read_text(), "python")
    draw_pictures(tmp_path, "records", 30, 0)
    model = tiny_model_folder(tmp_path)
    run = yaml.safe_load(block((ROOT / "README.md").read_text(), "yaml"))
    run |= {"model": {"path": str(model), "init": "random"}, "max_steps": 2}
    run["data"]["workers"] = 0
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    assert "Qwen/Qwen3-VL-2B-Instruct" in code
    (tmp_path / "script.py").write_text(code.replace("Qwen/Qwen3-VL-2B-Instruct", str(model)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "step=2" in result.stdout
    assert (tmp_path / "run" / "step-00000002").is_dir()


@pytest.mark.parametrize("command", made_docs.COMMANDS)
def test_the_example_of_every_help_text_is_a_command_line_that_parses(command: tuple[str, ...]) -> None:
    from typer.testing import CliRunner

    from lmms.cli.main import app

    example = re.search(r"Example: (lmms .*?)(?: ╭|$)", re.sub(r"\s+", " ", made_docs.help_text(command)))
    assert example
    words = shlex.split(example[1])[1:]
    assert words[: len(command)] == list(command)
    # With --help at its end a line is parsed and nothing is done: an unknown option would be an error.
    assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0
    if command in (("prep", "build-shards"), ("train",), ("inspect", "order")):
        # Any option may be a setting there; what is none is refused when the settings are read.
        named = ["shards", "model.path=m"] if command == ("inspect", "order") else ["--print-config"]
        result = CliRunner().invoke(app, [*command, *named, "--no-such-option=1"])
        assert isinstance(result.exception, ConfigError)
    else:
        assert CliRunner().invoke(app, [*words, "--no-such-option", "--help"]).exit_code == 2


def test_an_error_is_one_line_without_a_traceback_unless_asked_for(tmp_path: Path) -> None:
    words = ["inspect", "verify", str(tmp_path)]
    result = subprocess.run([*LMMS, *words], capture_output=True, text=True)
    assert result.returncode == 1
    assert "manifest.json is missing" in result.stderr
    assert "Traceback" not in result.stderr
    result = subprocess.run([*LMMS, "--debug", *words], capture_output=True, text=True)
    assert "Traceback" in result.stderr


@pytest.mark.parametrize("out", ["file/x", "/proc/none/x"])
def test_a_place_that_cannot_be_written_is_one_line(out: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    draw_pictures(tmp_path, "set", 3, 0)
    words = ["--model", str(tiny_model_folder(tmp_path)), "--seq-len", "256", "--workers", "1", "--out", out]
    run = [*LMMS, "prep", "build-shards", "set.jsonl", *words]
    result = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")


def records_of(kind: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """(name of the form, its lines) of every example of the page of records."""
    page = (ROOT / "docs" / "records.md").read_text()
    blocks = re.findall(rf"```{kind} (\w+)\n(.*?)```", page, re.DOTALL)
    return [(name, [json.loads(line) for line in text.splitlines()]) for name, text in blocks]


@pytest.mark.parametrize(("name", "lines"), records_of("json"))
def test_the_example_of_a_form_is_read_as_the_page_says(name: FormName, lines: list[dict[str, Any]]) -> None:
    record, expected = lines
    assert find_form([record]) == name
    normal = normal_form(record, replace(DEFAULT_READING, form=name)).record
    assert json.loads(json.dumps(normal, default=numbers)) == expected


def numbers(shape: Shape) -> list[float]:
    """The numbers of a box as records have them: its first and its third corner."""
    return [*shape.points[0], *shape.points[2]]


def test_the_page_of_records_has_an_example_or_a_word_for_every_form() -> None:
    page = (ROOT / "docs" / "records.md").read_text()
    assert {name for name, _ in records_of("json")} == set(FORMS) - {"openai"}
    assert set(FORMS) <= set(re.findall(r"^\*\*`(\w+)`\*\*", page, re.MULTILINE))


def test_the_maps_of_fields_on_the_page_of_records_are_read(tmp_path: Path) -> None:
    text = re.findall(r"```yaml fields\n(.*?)```", (ROOT / "docs" / "records.md").read_text(), re.DOTALL)[0]
    (tmp_path / "run.yaml").write_text(text + "model: m\nseq_len: 9\nout: o\n")
    first, second, third = load_config(PrepConfig, tmp_path / "run.yaml").source_configs
    turns = [{"role": "user", "content": "a"}]
    raw = {"data": {"turns": turns}, "pic": "a.jpg", "more": ["b.jpg"]}
    assert normal_form(raw, decide_reading(first)).record == {"messages": turns, "images": ["a.jpg", "b.jpg"]}
    asked = normal_form({"q": "a", "a": "b"}, decide_reading(second)).record
    assert [message["content"] for message in asked["messages"]] == ["a", "b"]
    assert normal_form({"body": "a"}, decide_reading(third)).record == {"text": "a"}


def test_the_sources_on_the_page_of_records_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = re.findall(r"```yaml sources\n(.*?)```", (ROOT / "docs" / "records.md").read_text(), re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    draw_pictures(tmp_path, "charts", 8, 0)
    turns = [[{"role": "user", "content": f"Is it {i}?"}, {"role": "assistant", "content": "Yes."}] for i in range(100)]
    for name, number in (("chats", 100), ("identity", 4)):
        lines = [json.dumps({"messages": messages}) + "\n" for messages in turns[:number]]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    web = {"text": [f"Page {i}." for i in range(100)], "score": [i % 10 / 10 for i in range(100)], "lang": ["en"] * 100}
    pl.DataFrame(web | {"site": [i // 10 for i in range(100)]}).write_parquet(tmp_path / "web.parquet")
    model = tiny_model_folder(tmp_path)
    (tmp_path / "build.yaml").write_text(f"{text}model: {model}\nseq_len: 2048\nout: shards\nworkers: 1\n")
    manifest = build_shards(load_config(PrepConfig, tmp_path / "build.yaml"))
    chats, web_pages, identity, charts = manifest.sources
    assert [source["name"] for source in manifest.sources] == ["chats.jsonl", "web", "identity.jsonl", "charts.jsonl"]
    assert (chats["read"], charts["read"]) == (100, 8)
    assert (web_pages["read"], web_pages["notes"]["skipped: filter"]) == (50, 30)
    assert identity["packed"] == 4
    assert 8 <= identity["samples"] <= 12
    held_out = read_manifest(LocalStore(tmp_path / "shards-eval"))
    assert held_out.counts["packed"] == manifest.notes["skipped: evaluation"] > 0
    assert held_out.sources[2]["packed"] == 0


def test_the_transforms_on_the_page_of_records_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "records.md").read_text()
    settings, code = (re.findall(rf"```{kind} transforms\n(.*?)```", page, re.DOTALL)[0] for kind in ("yaml", "python"))
    write_boxes(tmp_path)
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "run.yaml").write_text(f"{settings}model: {tiny_model_folder(tmp_path)}\nseq_len: 4096\nout: out\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = load_config(PrepConfig, tmp_path / "run.yaml", ["workers=0"])
    entries = config.source_configs[0].transforms or ()
    assert {str(entry["name"]) for entry in entries if "name" in entry} == set(TRANSFORM_NAMES)
    build_shards(config)
    packed = samples(tmp_path / "out", tmp_path / "model")
    assert len(packed) == 2
    assert all("You label pictures." in text for text, _ in packed)
    for name in TRANSFORM_NAMES:
        assert re.search(rf"^\| .*`{name}`.* \|", page, re.MULTILINE), name
