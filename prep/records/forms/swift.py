"""ms-swift: {messages: [{role, content: "<image>What?"}], images, ...}, or {query, response, history, system}.

Each tag takes the next entry of its column; where no tag is written, all pictures come before the first turn that is
not the system's, and so do all videos, or all sounds, of a record with no other media. Without a column of their kind,
<img>a.jpg</img>, <video>a.mp4</video> and <audio>a.wav</audio> are media. A turn `tool_call` and turns of the
assistant in a row are one turn. The tags <bbox> and <ref-object> take the next box and the next name of `objects`, and
boxes are written as ms-swift's QWENVL_BBOX_FORMAT=new does.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from lmms.prep.records.absent import is_blank
from lmms.prep.records.forms.alpaca import history_turns, joined
from lmms.prep.records.forms.sharegpt import LISTS, has_conversation, read_conversation
from lmms.prep.records.media.names import is_media_file
from lmms.prep.records.normal.boxes import place_objects
from lmms.prep.records.normal.form import Form, Normal, Roles, renamed
from lmms.prep.records.normal.system_column import SYSTEM_COLUMNS
from lmms.prep.records.normal.turns import (
    CALLS,
    MEDIA_COLUMNS,
    check_counts,
    media,
    missing,
    peeked,
    system_turn,
    with_places,
)
from lmms.prep.records.reasoning import REASONING_KEYS
from lmms.prep.records.weights import WEIGHT_KEYS
from lmms.prep.reject import Reject

_ADDRESS = re.compile(r"<(img|video|audio)>(.+?)</\1>")
_LISTS_OF_MEDIA = ("images", "videos", "audios")
_KINDS = {"img": "image", "video": "video", "audio": "audio"}
_QUERIES = ("query", "prompt", "question", "problem")
_RESPONSES = ("response", "answer", "output", "targets", "target", "answer_key", "answers", "solution")
_READ = (*LISTS, *SYSTEM_COLUMNS, *_QUERIES, *_RESPONSES, *MEDIA_COLUMNS, "instruction", "input", "history", "objects")


def _read(record: Mapping[str, Any], roles: Roles) -> Normal:
    column = _only(record, SYSTEM_COLUMNS)
    record = {**record, "system": record.get(column) if column else None}
    has_list = any(record.get(name) is not None for name in LISTS)
    messages, places = read_conversation(record, roles) if has_list else _read_query(record)
    entries = media(record)
    for message in messages:
        message["content"] = _content(message, entries)
    messages, places = _joined_turns(messages, places)
    _add_tags(messages, entries)
    place_objects(messages, record.get("objects"), len(entries.get("images", [])))
    check_counts(messages, entries)
    return Normal(renamed(record, _READ, messages=messages, **entries), places)


def _only(record: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The column of these names that is set: the first name, or else the only other one. Raises Reject."""
    given = [name for name in names if not is_blank(record.get(name))]
    if len(given) > 1 and given[0] != names[0]:
        message = f"both `{given[0]}` and `{given[1]}`; name the columns with `fields`"
        raise Reject("missing_messages", message, given[1])
    return given[0] if given else None


def _read_query(record: Mapping[str, Any]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    query, response = _only(record, _QUERIES), _only(record, _RESPONSES)
    question = record[query] if query else joined(record.get("instruction"), record.get("input"))
    if question is None:
        raise missing(record, "`query`")
    answer = record[response] if response else None
    answer = answer[0] if isinstance(answer, list) and answer else answer
    system = system_turn(record)
    history, places = history_turns(record.get("history"))
    turns = [{"role": "user", "content": question}]
    turns += [{"role": "assistant", "content": answer}] if answer is not None else []
    placed = (query or "instruction", response or "")[: len(turns)]
    return [*system, *history, *turns], (*["system"] * len(system), *places, *placed)


def _content(message: Mapping[str, Any], entries: Mapping[str, list[Any]]) -> Any:
    content = message["content"]
    if message["role"] == "tool" and isinstance(content, Mapping):
        content = json.dumps(content, ensure_ascii=False)
    if isinstance(content, str) and _ADDRESS.search(content):
        return _with_addresses(content, entries)
    return with_places(content) if isinstance(content, str) else content


def _with_addresses(text: str, entries: Mapping[str, list[Any]]) -> str | list[dict[str, str]]:
    """The parts of a text with addresses between tags. Of a kind with a column of entries these are no addresses."""
    parts: list[dict[str, str]] = []
    at = 0
    for match in _ADDRESS.finditer(text):
        kind = _KINDS[match[1]]
        if f"{kind}s" not in entries:
            parts += [*_text_parts(text[at : match.start()]), {"type": kind, kind: match[2]}]
            at = match.end()
    return [*parts, *_text_parts(text[at:])] if parts else with_places(text)


def _text_parts(text: str) -> list[dict[str, str]]:
    places = with_places(text)
    return places if isinstance(places, list) else [{"type": "text", "text": places}] if places else []


def _joined_turns(
    messages: list[dict[str, Any]], places: tuple[str, ...]
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The messages, with the assistant's in a row as one: text and then calls. Raises Reject."""
    turns: list[dict[str, Any]] = []
    placed: list[str] = []
    for message, place in zip(messages, places, strict=True):
        last = turns[-1] if turns else {}
        if message["role"] != "assistant" or last.get("role") != "assistant":
            turns.append(message)
            placed.append(place)
            continue
        is_call_of_run = "tool_calls" in last and "tool_calls" in message
        flags = [flag for flag in WEIGHT_KEYS if not is_call_of_run or message.get(flag) is not None]
        if any(last.get(flag) != message.get(flag) for flag in flags):
            raise Reject("conflicting_weights", "turns of the assistant in a row, with other flags each", place)
        if any(not is_blank(message.get(key)) for key in REASONING_KEYS):
            expected = "expected the reasoning of turns of the assistant in a row at the first of them"
            raise Reject("bad_reasoning", expected, place)
        turns[-1] = _one_turn(last, message, place)
    return turns, tuple(placed)


def _one_turn(first: dict[str, Any], second: dict[str, Any], place: str) -> dict[str, Any]:
    contents = [m["content"] for m in (first, second) if m["content"] is not None]
    if not all(isinstance(content, str) for content in contents) or ("tool_calls" in first and second["content"]):
        raise Reject("bad_content_type", "turns of the assistant in a row that cannot be joined", place)
    calls = [*first.get("tool_calls", []), *second.get("tool_calls", [])]
    return {
        **second,
        **first,
        "content": "".join(contents) if contents else None,
        **({"tool_calls": calls} if calls else {}),
    }


def _add_tags(messages: list[dict[str, Any]], entries: Mapping[str, list[Any]]) -> None:
    """Put all pictures before the first turn, or all media of another kind, where no turn has a place for one."""
    first = next((m for m in messages if m["role"] != "system"), None)
    kinds = [column.removesuffix("s") for column in _LISTS_OF_MEDIA if entries.get(column)]
    if not kinds or first is None or any(isinstance(m["content"], list) for m in messages):
        return
    kind = "image" if "image" in kinds else kinds[0]
    first["content"] = [*[{"type": kind}] * len(entries[f"{kind}s"]), {"type": "text", "text": first["content"]}]


def _fits(record: Mapping[str, Any]) -> bool:
    return "messages" in record or has_conversation(record) or _has_query(record)


def _has_query(record: Mapping[str, Any]) -> bool:
    answers = any(name in record for name in ("response", "answer", "output"))
    return not any(name in record for name in LISTS) and answers and any(name in record for name in _QUERIES)


def _marks(record: Mapping[str, Any]) -> bool:
    turns = [turn for turn in peeked(record, "messages") if isinstance(turn, Mapping)]
    contents = [turn.get("content") for turn in turns]
    if any(turn.get("role") in (*CALLS, "tool_response") for turn in turns):
        return True
    if not turns or any(isinstance(content, list) for content in contents):
        return _has_query(record)
    texts = [content for content in contents if isinstance(content, str)]
    if any(is_media_file(address) for text in texts for _, address in _ADDRESS.findall(text)):
        return True
    has_tag = any(with_places(text) != text for text in texts)
    return has_tag and any(not is_blank(record.get(name)) for name in (*MEDIA_COLUMNS, "objects"))


FORM = Form(_READ, _fits, _read, _marks)
