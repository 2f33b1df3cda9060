"""Short names of places differ, and one of a thing is not several."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmms.configs.words import counted, short_places, type_name


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["/data/chats.jsonl"], ("chats.jsonl",)),
        (
            ["/d/en/chats.jsonl", "/d/de/chats.jsonl", "/d/notes.jsonl"],
            ("en/chats.jsonl", "de/chats.jsonl", "notes.jsonl"),
        ),
        (["s3://b/en/x/shards/", "s3://b/de/x/shards"], ("en/x/shards", "de/x/shards")),
        (["chats.jsonl", "more/chats.jsonl"], ("chats.jsonl", "more/chats.jsonl")),
        (["/d/a", "/d/a", "/e/b"], ("a", "a", "b")),
        ([], ()),
    ],
)
def test_names_are_the_last_parts_that_differ(places: list[str], names: tuple[str, ...]) -> None:
    assert short_places(places) == names


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join), unique=True))
def test_places_that_differ_have_names_that_differ_and_end_them(places: list[str]) -> None:
    names = short_places(places)
    assert len(set(names)) == len(places)
    assert all(f"/{place}".endswith(f"/{name}") for place, name in zip(places, names, strict=True))


def test_one_is_singular() -> None:
    assert [counted(n, "shard") for n in (0, 1, 2000)] == ["0 shards", "1 shard", "2,000 shards"]
    assert counted(2, "match", "matches") == "2 matches"


def test_a_type_has_its_article() -> None:
    assert [type_name(value) for value in (1, [], object(), {})] == ["an int", "a list", "an object", "a dict"]
