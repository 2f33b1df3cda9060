"""The campaign of fuzzed readers, in a bounded form; and that it would see what it looks for."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmms.prep.engine import kept
from lmms.prep.records import read
from lmms.prep.video.process import stop
from tools.faults import fuzz_videos
from tools.faults.fuzz import Findings, Target, kept_target, main, record_target, report
from tools.faults.fuzz_videos import container_target, decoder_target, row_target
from tools.faults.mutations import mutated

LINE = json.dumps({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}).encode()


@pytest.fixture(scope="module", autouse=True)
def no_decoder_is_left() -> Iterator[None]:
    yield
    stop()


@pytest.mark.campaign
def test_changed_lines_files_and_packs_are_read_or_refused(tmp_path: Path) -> None:
    page = tmp_path / "faults.md"
    assert main(["--minutes", "0.05", "--seed", "7", "--report", str(page)]) == 0
    assert "**None of them was read in two ways" in page.read_text()


def test_changes_differ_and_come_from_the_seed_alone() -> None:
    made = [[mutated(LINE, [LINE], random.Random(seed)) for seed in range(200)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 150
    assert mutated(LINE, [LINE], random.Random(0)) != LINE


def test_a_quick_way_that_differs_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = read.parse_plain

    def careless(raw: Any, reading: Any) -> Any:
        record = sound(raw, reading)
        return replace(record, weight=2.0) if record and len(record.messages) == 2 else record

    attempt = record_target(tmp_path)
    monkeypatch.setattr(read, "parse_plain", careless)
    assert "wrong" in {attempt(random.Random(seed))[0] for seed in range(200)}


def test_a_damaged_file_that_is_taken_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = kept_target(tmp_path)
    monkeypatch.setattr(kept, "_hash", lambda file: "x")
    assert {attempt(random.Random(seed))[0] for seed in range(50)} <= {"made again", "taken"}
    monkeypatch.setattr(kept, "_digest", lambda key, content: b"")
    monkeypatch.setattr(kept, "_DIGEST", 0)
    assert "wrong" in {attempt(random.Random(seed))[0] for seed in range(200)}


@pytest.mark.parametrize(("target", "changes"), [(container_target, 1500), (decoder_target, 40), (row_target, 400)])
def test_changed_videos_and_rows_are_read_or_refused(target: Callable[[], Target], changes: int) -> None:
    attempt, rng = target(), random.Random(3)
    outcomes = [attempt(rng) for _ in range(changes)]
    assert [wrong for _, wrong in outcomes if wrong] == []
    assert len({outcome for outcome, _ in outcomes}) >= 3


def test_a_reader_of_videos_that_stumbles_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_videos, "container_of", lambda file: file.read().index(b"moov"))
    attempt = container_target()
    assert "wrong" in {attempt(random.Random(seed))[0] for seed in range(50)}


def test_the_page_says_what_went_wrong() -> None:
    assert "- kept: a sentence" in report(Findings(wrong=["kept: a sentence"]), 1)
