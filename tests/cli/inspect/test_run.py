"""lmms inspect run: text at fixed widths, JSON, and a page that holds every curve and asks for nothing from outside."""

import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from lmms.cli.inspect.run import show
from lmms.cli.main import app
from lmms.configs.errors import TrainError
from lmms.train.watch.history import read_history
from lmms.train.watch.metrics import SetLog
from lmms.train.watch.summary import parting, summarize
from tests.kit.logs import step_log, write_metrics
from tests.kit.processes import loaded_after


def make_run(folder: Path, steps: int, scale: float = 1.0, parts_at: int = 10**9) -> Path:
    """An output folder of a run on two sets, with MFU, an evaluation every tenth step, a resumption and an alarm."""
    logs = [
        step_log(
            step,
            steps=steps,
            loss=scale * (2 + 3 / step + 0.1 * math.sin(step)),
            lr=1e-5 / step,
            mfu=0.4,
            busy_mfu=0.45,
            digest=f"{step if step < parts_at else 7:016x}",
            sets={"s3://a<b": SetLog(loss=1.5, share=0.25, epoch=0.1), "b": SetLog(loss=2.0, share=0.75, epoch=2.0)},
            eval_loss=1.5 + 1 / step if step % 10 == 0 else None,
            loss_by_source={"x.jsonl": 1.5, "y.jsonl": 2.0 + 1 / step},
            eval_loss_by_source={"x.jsonl": 1.0 + 1 / step} if step % 10 == 0 else {},
            resumed_from=steps // 2 if step > steps // 2 else 0,
            alarms=("vision",) if step == 5 else (),
        )
        for step in range(1, steps + 1)
    ]
    return write_metrics(folder, logs)


def lmms(*words: str | Path) -> str:
    """What a command prints; its errors are raised."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def text_of(folders: list[Path], width: int, colours: bool) -> str:
    out = Console(
        width=width,
        file=io.StringIO(),
        record=True,
        force_terminal=colours,
        color_system="standard" if colours else None,
        highlight=False,
    )
    runs = [read_history(folder) for folder in folders]
    show(out, runs, [summarize(run) for run in runs], [parting(runs[0], other) for other in runs[1:]])
    return out.export_text()


class _Page(HTMLParser):
    """The tags with their attributes, the text of tiles and tables, and what the scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self._inside == "script" else self.texts).append(data)

    @property
    def data(self) -> dict[str, Any]:
        """What is drawn."""
        found: dict[str, Any] = json.loads(self.scripts[0])
        return found


@pytest.mark.parametrize("width", [80, 120])
def test_charts_table_and_partings_fit_the_width(width: int, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", 40), make_run(tmp_path / "b", 30, 1.1, parts_at=20)]
    text = text_of(runs, width, colours=True)
    above, _, below = text.partition(f"{runs[1]} against ")
    assert all(len(line.rstrip()) <= width for line in above.splitlines())
    for title in (
        "loss",
        "evaluation loss",
        "gradient norm",
        "learning rate",
        "tokens a second",
        "MFU, strict",
        "memory",
    ):
        assert title in above
    titles = [line for line in above.splitlines() if line.startswith("loss ")]
    assert ("evaluation loss" in titles[0]) == (width == 120)
    assert re.search(r"resumed +1 time +1 time\b", above)
    assert re.search(r"MFU +40\.0% strict, 45\.0% busy", above)
    assert "30 steps of both: other packs from step 20 on, other losses from step 1 on" in below.replace("\n", " ")


def test_without_colours_each_run_has_charts_of_its_own(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", 20), make_run(tmp_path / "b", 20)]
    count = {colours: text_of(runs, 80, colours).count("learning rate") for colours in (True, False)}
    assert count == {True: 1, False: 2}


def test_one_step_is_enough(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "a", [step_log(1)])
    assert "2.5 last, 2.5 lowest at step 1" in text_of([run], 80, colours=False)
    assert "loss" in lmms("inspect", "run", run)


def test_json_holds_the_sums_and_where_runs_part(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", 20), make_run(tmp_path / "b", 20, parts_at=8)]
    found = json.loads(lmms("inspect", "run", *runs, "--json"))
    assert [one["folder"] for one in found["runs"]] == [str(run) for run in runs]
    assert [one["tokens"] for one in found["runs"]] == [240_000, 240_000]
    assert [(one["packs"], one["loss"]) for one in found["partings"]] == [(8, None)]


def test_json_has_null_for_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    write_metrics(tmp_path, [step_log(1), step_log(2, loss=float("nan"))])
    text = lmms("inspect", "run", tmp_path, "--json")
    assert "NaN" not in text
    assert json.loads(text)["runs"][0]["loss"] is None


@pytest.mark.parametrize("count", [1, 2])
def test_the_page_holds_every_curve_of_every_run(count: int, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, 20) for name in "ab"[:count]]
    assert lmms("inspect", "run", *runs, "--html", tmp_path / "page.html") == f"wrote {tmp_path / 'page.html'}\n"
    page = _Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    curves = {
        (chart["title"], one["run"], one["label"]): one for chart in page.data["charts"] for one in chart["series"]
    }
    for run in range(count):
        for title, labels in {
            "loss": ["loss"],
            "evaluation loss": ["all"],
            "gradient norm": ["all", "llm", "aligner"],
            "learning rate": ["lr"],
            "tokens a second": ["all", "target", "prompt", "visual", "padding"],
            "MFU": ["strict", "busy"],
            "waiting for data": ["wait"],
            "memory": ["peak"],
            "loss by set": ["b", "s3://a<b"],
            "loss by source": ["x.jsonl", "y.jsonl"],
            "evaluation loss by source": ["x.jsonl"],
        }.items():
            assert [label for name, number, label in curves if (name, number) == (title, run)] == labels, title
    loss, grids = curves["loss", 0, "loss"], page.data["runs"][0]["grids"]
    assert loss["mean"] == pytest.approx(read_history(runs[0]).column("loss").tolist(), rel=1e-5)
    assert grids[loss["grid"]]["step"] == list(range(1, 21))
    assert grids[loss["grid"]]["tokens"] == [12_000 * step for step in range(1, 21)]
    assert grids[curves["evaluation loss", 0, "all"]["grid"]]["step"] == [10, 20]
    assert page.data["runs"][0] | {"grids": 0} == {
        "name": str(runs[0]),
        "grids": 0,
        "resumed": [10],
        "alarms": [[5, "vision"]],
        "skipped": {"step": [], "tokens": [], "hours": []},
    }


def page_of(runs: list[Path], path: Path) -> dict[str, Any]:
    """What the page of these runs draws."""
    lmms("inspect", "run", *runs, "--html", path)
    return _Page(path.read_text(encoding="utf-8")).data


def seen(data: dict[str, Any], title: str) -> list[tuple[int, str]]:
    """Run and label of the curves that a chart shows at first."""
    (chart,) = (chart for chart in data["charts"] if chart["title"] == title)
    return [(one["run"], one["label"]) for one in chart["series"] if not one.get("hidden")]


def test_at_first_the_page_shows_sums_alone_and_all_sources(tmp_path: Path) -> None:
    names = [["a", "b", "c", "d", "e"], ["y", "z"], ["b", "z"]]
    runs = [
        write_metrics(tmp_path / f"{i}", [step_log(1, loss_by_source=dict.fromkeys(own, 1.0), mfu=0.4, busy_mfu=0.5)])
        for i, own in enumerate(names)
    ]
    data = page_of(runs, tmp_path / "page.html")
    assert seen(data, "loss by source") == [(i, name) for i, own in enumerate(names) for name in own]
    assert seen(data, "gradient norm") == seen(data, "tokens a second") == [(i, "all") for i in range(3)]
    assert seen(data, "MFU") == [(i, label) for i in range(3) for label in ("strict", "busy")]
    alone = page_of(runs[:1], tmp_path / "page.html")
    assert seen(alone, "gradient norm") == [(0, "all"), (0, "llm"), (0, "aligner")]


@pytest.mark.parametrize(("count", "each"), [(1, 12), (2, 6), (13, 1)])
def test_of_many_sources_the_page_shows_the_first_of_each_run(count: int, each: int, tmp_path: Path) -> None:
    runs = [
        write_metrics(
            tmp_path / f"{i}", [step_log(1, loss_by_source=dict.fromkeys([f"{i:02}-{n:02}" for n in range(20)], 1.0))]
        )
        for i in range(count)
    ]
    data = page_of(runs, tmp_path / "page.html")
    assert seen(data, "loss by source") == [(i, f"{i:02}-{n:02}") for i in range(count) for n in range(each)]


def make_broken_run(folder: Path) -> Path:
    """Nine steps: the fourth and the fifth are skipped, the last two are profiled."""
    logs = [
        step_log(
            step,
            steps=9,
            loss=float("nan") if step in (4, 5) else 2.0 + step,
            skipped={4: 1, 5: 2}.get(step, 0),
            profiled=step > 7,
            eval_loss=1.0 if step in (3, 9) else None,
        )
        for step in range(1, 10)
    ]
    return write_metrics(folder, logs)


def test_the_page_marks_skipped_steps_and_breaks_the_loss_there(tmp_path: Path) -> None:
    data = page_of([make_broken_run(tmp_path / "a")], tmp_path / "page.html")
    curves = {(chart["title"], one["label"]): one for chart in data["charts"] for one in chart["series"]}
    loss = curves["loss", "loss"]
    assert data["runs"][0]["grids"][loss["grid"]]["step"] == [1, 2, 3, 6, 7, 8, 9]
    assert loss["breaks"] == curves["gradient norm", "all"]["breaks"] == [3]
    assert not {"breaks"} & (curves["tokens a second", "all"].keys() | curves["evaluation loss", "all"].keys())
    skipped = data["runs"][0]["skipped"]
    assert (skipped["step"], skipped["tokens"]) == ([4, 5], [48_000, 60_000])
    assert "× a skipped step" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_skipped_and_profiled_steps_are_seen_in_the_terminal(tmp_path: Path) -> None:
    text = text_of([make_broken_run(tmp_path / "a")], 80, colours=False)
    (marks,) = [line for line in text.splitlines() if line.lstrip().startswith("skipped │")]
    cells = marks.partition("│")[2]
    assert [i for i, cell in enumerate(cells) if cell == "×"] == [24, 33]
    assert re.search(r"parts without gradient +none\n", re.sub(" +\n", "\n", text))
    assert re.search(r"skipped steps +2 ", text)
    assert re.search(r"profiled steps +2 ", text)
    assert "tokens/s over all but 2 profiled steps" in text
    plain = text_of([make_run(tmp_path / "b", 10)], 80, colours=False)
    assert "×" not in plain
    assert "profiled steps" not in plain
    assert re.search(r"parts without gradient +1 alarm ", plain)
    assert "tokens/s over all of it" in plain


def test_losses_by_source_and_norms_by_part_stand_side_by_side(tmp_path: Path) -> None:
    runs = [
        write_metrics(
            tmp_path / name,
            [
                step_log(
                    step, loss_by_source={f"a rather long name of a source {i:02}": start + step for i in range(14)}
                )
                for step in range(1, 101)
            ],
        )
        for name, start in (("first", 0.0), ("second", 500.0))
    ]
    write_metrics(runs[1], [step_log(101, loss_by_source={"A" * 100: 3.25})])
    text = text_of(runs, 80, colours=True)
    lines = text.partition("smoothed, at the end")[2].partition(" against ")[0].splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    table = "\n".join(line.rstrip() for line in lines)
    # A mean over about three steps, each twice as heavy as the one before: 1 below the last.
    assert re.search(r"^  a rather long name of a source 00 +99 +599$", table, re.MULTILINE)
    assert re.search(r"loss by source\n  A+ +- +3\.25\nA+\nA+\n  a rather", table)
    assert "source 10 " in table
    assert "source 11 " not in table
    assert "  and 3 more: see --html" in table
    assert re.search(r"gradient norm\n  llm +1\.5 +1\.5\n  aligner +0 +0\n", table)


def test_settings_that_differ_are_shown_as_yaml(tmp_path: Path) -> None:
    texts = ["a: true\nb: null\nc: [x, 1]\nd: 1\n", f"a: false\nb: {'word ' * 40}\nc: null\nd: 2\n"]
    runs = [write_metrics(tmp_path / f"{i}", [step_log(1)]) for i in range(2)]
    for run, text in zip(runs, texts, strict=True):
        (run / "config.yaml").write_text(text)
    lines = lmms("inspect", "run", *runs).splitlines()[-4:]
    assert lines == [
        "  a: true there, false here",
        f"  b: null there, {' '.join(['word'] * 40)} here",
        "  c: [x, 1] there, null here",
        "  d: 1 there, 2 here",
    ]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        # A rough distance of 2.1 would be rounded to 2.5.
        ("ticks(1, 30, 14, true)", [5, 10, 15, 20, 25, 30]),
        ("ticks(1, 30, 14, false)", [2.5 * i for i in range(1, 13)]),
        ("ticks(1, 3, 14, true)", [1, 2, 3]),
        ("ticks(0, 100, 4, true)", [0, 25, 50, 75, 100]),
        ("stretches([1, 2, 3, 4], [1, 3])", [[1], [2, 3], [4]]),
        ("stretches([1, 2])", [[1, 2]]),
    ],
)
def test_the_script_puts_whole_steps_on_the_axis_and_parts_lines_at_breaks(call: str, expected: list[Any]) -> None:
    script = files("lmms.cli.inspect.page").joinpath("script.js").read_text(encoding="utf-8")
    functions = re.findall(r"^function (?:ticks|stretches)\(.*?^}$", script, re.MULTILINE | re.DOTALL)
    code = "\n".join([*functions, f"console.log(JSON.stringify({call}))"])
    result = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True, timeout=600)
    assert json.loads(result.stdout) == expected


def test_the_page_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    lmms("inspect", "run", make_run(tmp_path / "a", 20), "--html", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert not [
        name for _, attributes in page.tags for name in attributes if name in ("src", "href", "srcset", "action")
    ]
    assert not re.search(r"https?:|@import|fetch\(|XMLHttpRequest|import\(", text)
    assert "url(" not in re.sub(r"url\(#", "", text)
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_names_in_the_page_cannot_be_tags(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<script>alert(1)<", 20)
    lmms("inspect", "run", run, "--html", tmp_path / "page.html")
    page = _Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert page.data["runs"][0]["name"] == str(run)
    assert any(str(run) in text for text in page.texts)


def test_twenty_thousand_steps_are_drawn_in_few_points_with_their_extremes(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "a", [])
    lines = (json.dumps(line) for line in _long_lines(20_000))
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    lmms("inspect", "run", run, "--html", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    (loss,) = [one for chart in _Page(text).data["charts"] for one in chart["series"] if chart["title"] == "loss"]
    assert len(loss["mean"]) == len(loss["low"]) == len(loss["high"]) == 1500
    assert (min(loss["low"]), max(loss["high"])) == (1.0, 99.0)
    assert len(text) < 1_000_000


def _long_lines(steps: int) -> list[dict[str, Any]]:
    from dataclasses import asdict

    line = asdict(step_log(1))
    return [
        {**line, "step": i, "time": 2.0 * i, "loss": 99.0 if i == 7_777 else 1.0 + (i % 5) / 10}
        for i in range(1, steps + 1)
    ]


@pytest.mark.parametrize("words", [[], ["--json"], ["--html", "page.html"]])
def test_a_folder_that_is_no_run_is_refused_before_anything_is_written(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    run = make_run(tmp_path / "a", 3)
    with pytest.raises(TrainError, match=r"none/metrics\.jsonl cannot be read"):
        CliRunner().invoke(app, ["inspect", "run", str(run), str(tmp_path / "none"), *words], catch_exceptions=False)
    assert not (tmp_path / "page.html").exists()


def test_inspecting_a_run_loads_no_torch() -> None:
    assert loaded_after("import lmms.train.watch.history, lmms.cli.inspect.run, lmms.cli.inspect.page.write") == set()
