"""The turns of a rendering, each with the messages of the record that it shows.

A template may put the results of several calls into one user turn, and a system turn of its own before all others.
Whatever else a template drops, adds or moves is a Reject here, never a shifted placeholder.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from lmms.prep.records.parts import Audio, Part, Video
from lmms.prep.records.record import Message, Record
from lmms.prep.reject import Reject


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn in a rendering that was cut into text, control token, text, control token, ..., text."""

    role: str
    media: tuple[str, ...]
    """Kinds of the pictures, videos and sounds, in order."""
    first: int
    """The piece of text behind the token that opens the turn."""
    end: int | None
    """The piece that is the token that closes the turn; None where nothing closes it."""
    header: int
    """Characters of the first piece that are the role, with its line break."""


def find_turns(pieces: Sequence[str], turn_start: str, turn_end: str, kinds: Mapping[str, str]) -> list[Turn]:
    """The turns of a rendering, in order. Raises Reject for media before the first turn.

    kinds: placeholder -> kind of media.
    """
    starts = [i + 1 for i in range(1, len(pieces), 2) if pieces[i] == turn_start]
    if any(piece in kinds for piece in pieces[1 : starts[0] - 1 if starts else None : 2]):
        raise Reject("template_changes_record", "the template puts an image before the first turn", "messages")
    turns = []
    for first, following in zip(starts, [*starts[1:], len(pieces) + 1], strict=True):
        role, newline, _ = pieces[first].partition("\n")
        controls = pieces[first + 1 : following - 1 : 2]
        end = first + 1 + 2 * controls.index(turn_end) if turn_end in controls else None
        media = tuple(kinds[control] for control in controls if control in kinds)
        turns.append(Turn(role, media, first, end, len(role) + len(newline)))
    return turns


def match_turns(turns: Sequence[Turn], record: Record) -> list[tuple[Turn, tuple[Message, ...]]]:
    """Each turn with its messages, no messages for a system turn of the template. Raises Reject."""
    joined: list[tuple[Message, ...]] = [
        group for is_tool, run in groupby(record.messages, _is_tool) for group in _groups(is_tool, run)
    ]
    apart: list[tuple[Message, ...]] = [(message,) for message in record.messages]
    for groups, tool_role in ((joined, "user"), (apart, "tool")):
        expected = [_shape(group, tool_role) for group in groups]
        given = [(turn.role, turn.media) for turn in turns]
        if given == expected:
            return list(zip(turns, groups, strict=True))
        if given == [("system", ()), *expected]:
            return list(zip(turns, [(), *groups], strict=True))
    raise _difference(turns, joined)


def _is_tool(message: Message) -> bool:
    return message.role == "tool"


def _groups(is_tool: bool, run: Iterator[Message]) -> list[tuple[Message, ...]]:
    return [tuple(run)] if is_tool else [(message,) for message in run]


def _shape(group: Sequence[Message], tool_role: str = "user") -> tuple[str, tuple[str, ...]]:
    """Role and media of the turn that shows these messages: Qwen's templates show results of tools as a user turn."""
    role = tool_role if group[0].role == "tool" else group[0].role
    return role, tuple(media_kind(part) for message in group for part in message.media)


def media_kind(part: Part) -> str:
    """Kind of a part, as templates and packs name the kind."""
    return "video" if isinstance(part, Video) else "audio" if isinstance(part, Audio) else "image"


def _difference(turns: Sequence[Turn], groups: Sequence[Sequence[Message]]) -> Reject:
    given, expected = [(turn.role, turn.media) for turn in turns], [_shape(group) for group in groups]
    if len(given) == len(expected) + 1 and given[0] == ("system", ()):
        given = given[1:]
    i = next(
        (i for i, (a, b) in enumerate(zip(given, expected, strict=False)) if a != b), min(len(given), len(expected))
    )
    turn = _named(*given[i]) if i < len(given) else "nothing"
    wanted = _named(*expected[i]) if i < len(expected) else "nothing"
    return Reject(
        "template_changes_record",
        f"the chat template renders {turn} where the record has {wanted}: it drops, adds or moves a turn or an image",
        f"messages[{sum(map(len, groups[:i]))}]",
    )


def _named(role: str, media: Sequence[str]) -> str:
    others = [f" and {media.count(kind)} {noun}" for kind, noun in (("video", "videos"), ("audio", "sounds"))]
    return f"a {role} turn with {media.count('image')} images{''.join(each for each in others if ' 0 ' not in each)}"


def check_texts(texts: Sequence[str], groups: Sequence[Sequence[Message]], record: Record) -> bool:
    """Whether the template left out text of the record that nothing is learned from.

    texts: what the turns of a rendering show; groups: the messages of each. Raises Reject for text to learn from that a
    turn does not show, or shows in another order.
    """
    rendering = "".join(texts)
    left_out = False
    for text, group in zip(texts, groups, strict=True):
        for message in group:
            if message.weight:
                left_out |= _leaves_out(message, text, record)
            else:
                left_out |= any(part.strip() not in rendering for part in (message.text, message.reasoning or ""))
    return left_out


def _leaves_out(message: Message, text: str, record: Record) -> bool:
    """Whether a turn to learn from lacks reasoning that the settings let the template leave out. Raises Reject."""
    thought, _, answer = message.text.rpartition("</think>")
    thoughts = [message.reasoning or "", *_THINK_TAG.split(thought)]
    left_out, at = False, 0
    for is_reasoning, part in (
        *((True, part.strip()) for part in thoughts),
        (False, answer.strip()),
        *((False, call.name) for call in message.calls),
    ):
        place = text.find(part, at)
        if place >= 0:
            at = place + len(part)
        elif is_reasoning and record.reasoning == "optional":
            left_out = True
        else:
            raise _lacks(part, is_reasoning, record.messages.index(message))
    return left_out


_THINK_TAG = re.compile(r"</?think>")


def _lacks(part: str, is_reasoning: bool, number: int) -> Reject:
    shown = repr(part if len(part) <= 60 else f"{part[:57]}...")
    if is_reasoning:
        advice = "set reasoning=stripped or optional, targets=last, or another chat_template"
        message = f"the chat template leaves out the reasoning {shown} of a turn to learn from; {advice}"
        return Reject("reasoning_dropped", message, f"messages[{number}]")
    message = f"the chat template does not show {shown} of a turn to learn from, or not in its place"
    return Reject("template_changes_record", message, f"messages[{number}]")
