"""What is learned: the choice of targets, and the flags of other systems on a turn."""

from dataclasses import replace
from typing import Any

import pytest

from lmms.configs.settings.sources import DEFAULT_READING, Targets
from lmms.prep.records.read import read_record
from lmms.prep.records.record import Record, parse_record
from lmms.prep.reject import Reject


def read(*flags: dict[str, Any], targets: Targets = "assistant", roles: str = "uaua") -> Record:
    names = {"s": "system", "u": "user", "a": "assistant"}
    padded = [*flags, *[{}] * (len(roles) - len(flags))]
    messages = [{"role": names[r], "content": r, **flag} for r, flag in zip(roles, padded, strict=True)]
    return parse_record({"messages": messages}, replace(DEFAULT_READING, targets=targets))


def weights(*flags: dict[str, Any], **options: Any) -> list[float]:
    return [message.weight for message in read(*flags, **options).messages]


@pytest.mark.parametrize(
    ("targets", "expected"), [("assistant", [0, 0, 1, 0, 1]), ("last", [0, 0, 0, 0, 1]), ("all", [1, 1, 1, 1, 1])]
)
def test_targets_choose_the_turns_to_learn_from(targets: Targets, expected: list[float]) -> None:
    assert weights(targets=targets, roles="suaua") == expected


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ({"weight": 0.5}, 0.5), ({"loss_weight": 2}, 2), ({"loss_scale": 0.25}, 0.25), ({"weight": 0}, 0),
        ({"loss": True}, 1), ({"loss": False}, 0), ({"train": False}, 0), ({"train": 1}, 1),
        ({"loss_mask": 0}, 0), ({"loss_mask": 1}, 1), ({"mask": True}, 0), ({"mask": False}, 1), ({"loss": None}, 1),
        ({"loss_scale": 0.25, "loss": True}, 0.25), ({"weight": 0, "train": False}, 0),
        ({"weight": 2, "loss_weight": 2}, 2),
    ],
)  # fmt: skip
def test_a_flag_of_an_assistant_turn_counts_as_what_it_says(flag: dict[str, Any], expected: float) -> None:
    assert weights({}, flag) == [0, expected, 0, 1]
    assert read({}, flag).unused == ()


@pytest.mark.parametrize(
    "flags",
    [
        {"loss": True, "train": False}, {"loss_mask": 1, "mask": True}, {"weight": 1, "loss": False},
        {"weight": 0, "train": True}, {"weight": 1, "loss_scale": 2},
    ],
)  # fmt: skip
def test_flags_that_contradict_each_other_are_a_rejection(flags: dict[str, Any]) -> None:
    with pytest.raises(Reject, match="contradict") as caught:
        read({}, flags)
    assert (caught.value.reason, caught.value.place) == ("conflicting_weights", "messages[1]")


@pytest.mark.parametrize(
    "flags", [{"loss": "no"}, {"train": 0.5}, {"mask": 2}, {"loss_weight": True}, {"loss_scale": -1}]
)
def test_a_flag_of_a_wrong_value_is_a_rejection(flags: dict[str, Any]) -> None:
    with pytest.raises(Reject) as caught:
        read({}, flags)
    assert caught.value.reason == "bad_weight"


def test_a_user_turn_is_learned_only_where_all_turns_are() -> None:
    assert weights({"train": False}, {}, {"weight": 1}) == [0, 1, 0, 1]
    assert weights({"train": False}, {}, {"loss_weight": 3}, targets="all") == [0, 1, 3, 1]
    with pytest.raises(Reject, match="set targets=all"):
        read({"train": True})
    with pytest.raises(Reject, match="or targets=all"):
        read({"loss_weight": 3})


def test_a_record_without_assistant_is_text_to_learn_from_where_all_turns_are() -> None:
    assert weights(targets="all", roles="uu") == [1, 1]
    with pytest.raises(Reject, match="targets=all") as caught:
        read(roles="uu")
    assert caught.value.reason == "no_assistant"


def test_roles_of_other_systems_are_named_by_a_setting() -> None:
    messages = [
        {"role": "developer", "content": "a"},
        {"role": "human", "content": "b"},
        {"role": "gpt", "content": "c"},
    ]
    reading = replace(DEFAULT_READING, roles={"developer": "system", "human": "user", "gpt": "assistant"})
    assert [m.role for m in parse_record({"messages": messages}, reading).messages] == ["system", "user", "assistant"]
    with pytest.raises(Reject, match=r"roles=.developer: user") as caught:
        parse_record({"messages": messages})
    assert caught.value.reason == "unknown_role"


TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


@pytest.mark.parametrize(
    ("columns", "weight", "unused"),
    [
        ({"loss_weight": 0.5}, 0.5, ()),
        ({"loss_scale": 2, "weight": 2.0}, 2.0, ()),
        ({"train": True, "mask": False, "loss_mask": True}, 1.0, ()),
        ({"loss": 0.7, "train": "split", "loss_mask": [0, 1]}, 1.0, ("loss", "train", "loss_mask")),
    ],
)
@pytest.mark.parametrize("form", [{"messages": TURNS}, {"text": "A text"}])
def test_flags_of_a_record_weigh_the_record(
    form: dict[str, Any], columns: dict[str, Any], weight: float, unused: tuple[str, ...]
) -> None:
    record = read_record({**form, **columns}, replace(DEFAULT_READING, form="text" if "text" in form else "openai"))
    assert record.weight == weight
    assert record.unused == tuple(f"column {column}" for column in unused)


@pytest.mark.parametrize(
    ("columns", "reason", "place"),
    [
        ({"loss": False}, "no_target_tokens", "loss"),
        ({"train": False}, "no_target_tokens", "train"),
        ({"mask": True}, "no_target_tokens", "mask"),
        ({"loss_weight": 0}, "no_target_tokens", "loss_weight"),
        ({"weight": 0}, "no_target_tokens", "weight"),
        ({"weight": 1, "loss_weight": 2}, "conflicting_weights", "weight"),
        ({"weight": 1, "train": False}, "conflicting_weights", "weight"),
        ({"loss_scale": -1}, "bad_weight", "loss_scale"),
    ],
)
@pytest.mark.parametrize("form", [{"messages": TURNS}, {"text": "A text"}])
def test_a_record_that_is_not_to_be_learned_is_a_rejection(
    form: dict[str, Any], columns: dict[str, Any], reason: str, place: str
) -> None:
    with pytest.raises(Reject) as caught:
        read_record({**form, **columns}, replace(DEFAULT_READING, form="text" if "text" in form else "openai"))
    assert (caught.value.reason, caught.value.place) == (reason, place)
