"""Numbers and places as people read them."""

from collections import Counter
from collections.abc import Sequence


def counted(number: int, noun: str, plural: str = "") -> str:
    """1, "shard" -> 1 shard; 2000, "shard" -> 2,000 shards. plural: for a noun whose plural is not noun + s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def type_name(value: object) -> str:
    """What to call the type of a Python value in a sentence: a dict, an int."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def short_places(places: Sequence[str]) -> tuple[str, ...]:
    """The shortest names that tell paths or URLs apart: as few last parts as no other place ends with.

    data/en/chats.jsonl, data/de/chats.jsonl and data/notes.jsonl are en/chats.jsonl, de/chats.jsonl and notes.jsonl.
    The same place twice has the same name twice.
    """
    parts = {place: place.rstrip("/").split("/") for place in places}
    names: dict[str, str] = {}
    length = 1
    while len(names) < len(parts):
        ends = {place: tuple(names_of_place[-length:]) for place, names_of_place in parts.items()}
        times = Counter(ends.values())
        for place, end in ends.items():
            if place not in names and (times[end] == 1 or length >= len(parts[place])):
                names[place] = "/".join(end)
        length += 1
    return tuple(names[place] for place in places)
