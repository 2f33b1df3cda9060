"""Repeats: how often each row is packed."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmms.configs.settings.sources import Choice
from lmms.prep.choice.repeat import copies


@given(st.integers(1, 20_000), st.integers(0, 300), st.integers(0, 300))
def test_a_row_has_the_same_copies_wherever_its_chunk_begins(thousandths: int, before: int, rows: int) -> None:
    choice = Choice(repeat=thousandths / 1000)
    whole = copies(choice, "a", 0, before + rows)
    assert copies(choice, "a", before, rows) == whole[before:]
    repeat = Fraction(thousandths, 1000)
    assert set(whole) <= {int(repeat), int(repeat) + (repeat != int(repeat))}


@pytest.mark.parametrize("repeat", [0.3, 1.0, 2.0, 2.5, 2.3, 0.001])
def test_the_copies_are_as_many_as_asked_for(repeat: float) -> None:
    rows = 100_000
    part = repeat % 1
    five_sigma = 5 * (rows * part * (1 - part)) ** 0.5
    assert abs(sum(copies(Choice(repeat=repeat), "a", 0, rows)) - rows * repeat) <= five_sigma


def test_seed_and_source_decide_which_rows_are_taken() -> None:
    first = copies(Choice(repeat=0.5), "a", 0, 1000)
    for other in (copies(Choice(repeat=0.5, seed=1), "a", 0, 1000), copies(Choice(repeat=0.5), "b", 0, 1000)):
        assert 400 < sum(x != y for x, y in zip(first, other, strict=True)) < 600


def test_the_rows_of_a_seed_do_not_change_with_a_version() -> None:
    taken = [row for row, count in enumerate(copies(Choice(repeat=0.3), "a.jsonl", 0, 20)) if count]
    assert taken == [2, 6, 7, 8, 9, 14, 16, 19]
