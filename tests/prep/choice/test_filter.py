"""Filters: which records pass, what is refused, and that the end of a chunk changes nothing."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmms.configs.errors import ConfigError
from lmms.prep.choice.filter import LEFT_OUT, filter_columns, passes, take_filtered

SCORES = [{"score": 0.9, "lang": "en"}, {"score": 0.9, "lang": "de"}, {"score": None, "lang": "en"}, {"lang": "en"}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("score > 0.5 AND lang = 'en'", [True, False, False, False]),
        ("score IS NULL", [False, False, True, True]),
        ("lang IN ('de', 'fr')", [False, True, False, False]),
        ("lang LIKE 'e%' OR score > 0.5", [True, True, True, True]),
        ("TRY_CAST(lang AS DOUBLE) > .5 OR score = 0.9", [True, True, False, False]),
        ("LENGTH(lang) = 2 AND NOT lang = 'de'", [True, False, True, True]),
    ],
)
def test_a_filter_is_sql_on_the_columns_in_which_a_missing_column_is_null(text: str, expected: list[bool]) -> None:
    assert passes(text, SCORES, "rows") == expected


NUMBERS = st.none() | st.integers(-9, 9) | st.floats(-9, 9)


@given(st.lists(st.fixed_dictionaries({}, optional={"n": NUMBERS})), st.data())
def test_a_record_passes_wherever_a_chunk_ends(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    text = "n > 1.5"
    assert passes(text, rows[:cut], "") + passes(text, rows[cut:], "") == passes(text, rows, "")
    assert passes(text, rows, "") == [(row.get("n") or 0) > 1.5 for row in rows]


@pytest.mark.parametrize("text", ["LENGTH(tag) > 3", "tag LIKE 'a%'", "ARRAY_LENGTH(tag) > 1", "tag > 3"])
def test_a_column_without_a_value_in_a_chunk_is_null_of_any_type(text: str) -> None:
    assert passes(text, [{"tag": None}, {}], "") == [False, False]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("score >", "unable to parse"),
        ("1 = 1", "it names no column"),
        ("score > AVG(score)", "more than one record"),
        ("SUM(score) OVER (PARTITION BY lang) > 1", "more than one record"),
        ("score > QUANTILE_CONT(score, 0.5)", "more than one record"),
        ("score > 1 AND COUNT(*) > 3", "more than one record"),
        ("score > (SELECT 1)", "more than one record"),
        ("nonsense(score) > 1", "nonsense"),
    ],
)
def test_what_is_no_filter_of_single_records_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        filter_columns(text)


def test_a_text_of_the_user_is_no_part_of_the_expression() -> None:
    assert filter_columns("Agg = 'Len' AND b = 'Over'") == ("Agg", "b")
    assert passes("a = '1.5'", [{"a": "1.5"}, {"a": "01.50e0"}], "") == [True, False]


@pytest.mark.parametrize(
    ("text", "rows", "fault"),
    [
        ("score > 0.5", [{"score": "0.7"}], r"on rows 0 to 0 of a, where score is String: .* TRY_CAST"),
        ("score > 0.5", [{"score": "0.7"}, {"score": 1}], "column score holds int, str in rows 0 to 1 of a"),
        ("score + 1", [{"score": 1.0}], "type Float64, expected true or false"),
    ],
)
def test_a_filter_that_cannot_be_evaluated_is_an_error_with_its_columns(
    text: str, rows: list[dict[str, Any]], fault: str
) -> None:
    with pytest.raises(ConfigError, match=fault):
        take_filtered(enumerate(rows), text, "a")


def test_values_that_are_no_records_stay_in_their_places() -> None:
    rows = [(7, "blank"), (8, {"a": 1}), (9, 5), (10, {"a": 2})]
    taken, columns = take_filtered(rows, "a = 2", "x")
    assert list(taken) == [(7, "blank"), (8, LEFT_OUT), (9, 5), (10, {"a": 2})]
    assert columns == {"a"}
    assert take_filtered(rows, "b IS NULL AND a = 2", "x")[1] == {"a"}
