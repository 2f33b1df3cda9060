"""The campaign of damaged files, in a bounded form; and that it would see what it looks for."""

import random
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from lmms.prep.rows.child import table_reader
from tools.faults.files import READ, REFUSED, TITLE, main, outcome, report
from tools.faults.page import write_part
from tools.faults.sound_files import ROWS, damaged, sound_files


@pytest.mark.campaign
def test_random_changes_end_with_rows_or_a_sentence(tmp_path: Path) -> None:
    page = tmp_path / "faults.md"
    assert main(["--changes", "130", "--seed", "5", "--keep", str(tmp_path / "wrong"), "--report", str(page)]) == 0
    assert "**None of them ended a process" in page.read_text()


def test_sound_files_are_read_and_changes_are_seen(tmp_path: Path) -> None:
    rng = random.Random(0)
    with table_reader() as read_table:
        for ending, data in sound_files().items():
            file = tmp_path / f"a{ending}"
            file.write_bytes(data)
            assert outcome(file, read_table) == READ, ending
            assert damaged(data, rng) != data
        (tmp_path / "cut.parquet").write_bytes(sound_files()[".parquet"][:-1])
        assert outcome(tmp_path / "cut.parquet", read_table) == REFUSED
        pl.read_parquet(tmp_path / "a.parquet").head(ROWS - 1).write_parquet(tmp_path / "short.parquet")
        assert outcome(tmp_path / "short.parquet", read_table).endswith(f"{ROWS - 1} rows in place of {ROWS}")


def test_each_campaign_writes_its_part_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "faults.md"
    write_part(page, "# Faults\n\nnone\n")
    for wrong in ([], ["a.csv: lost"]):
        write_part(page, report({".csv": Counter({READ: 2})}, wrong, 2, 0, 60.0))
    write_part(page, "# Faults\n\nstill none\n")
    text = page.read_text()
    assert text.startswith(f"# Faults\n\nstill none\n\n{TITLE}\n")
    assert text.count(TITLE) == 1
    assert "**1 of them ended a process" in text
    assert "- a.csv: lost" in text
