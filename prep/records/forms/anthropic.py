"""Anthropic: {system, messages: [{role, content: [blocks]}], tools: [{name, input_schema}]}.

Blocks: text; image with a source; thinking; tool_use (a call); tool_result (a message of its own, before the rest).
"""

from collections.abc import Mapping
from typing import Any

from lmms.prep.records.normal.form import Form, Normal, Roles, renamed
from lmms.prep.records.normal.turns import listed, missing, peeked, peeked_parts
from lmms.prep.records.strict_json import kind_of, parse_json
from lmms.prep.reject import Reject

_KEYS = ("source", "signature", "cache_control")
"""Keys that only a block of this form has."""


def _read(record: Mapping[str, Any], _roles: Roles) -> Normal:
    if record.get("messages") is None:
        raise missing(record, "`messages`")
    messages: list[Any] = []
    places: list[str] = []
    for i, message in enumerate(listed(record, "messages")):
        made = _messages(message, f"messages[{i}]")
        messages += made
        places += [f"messages[{i}]"] * len(made)
    tools = {"tools": _tools(record["tools"])} if record.get("tools") else {}
    system = {"system": _system(record["system"])} if isinstance(record.get("system"), list) else {}
    return Normal(renamed(record, (), messages=messages, **tools, **system), tuple(places))


def _system(blocks: list[Any]) -> list[dict[str, Any]]:
    return [_set_keys(block, f"system[{i}]") for i, block in enumerate(blocks)]


def _messages(message: Any, place: str) -> list[Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), list):
        return [message]
    blocks = [_set_keys(block, f"{place}.content[{i}]") for i, block in enumerate(message["content"])]
    kinds = [block.get("type") for block in blocks]
    results = [_result(block, f"{place}.content[{i}]") for i, block in enumerate(blocks) if kinds[i] == "tool_result"]
    calls = [_call(block) for block in blocks if block.get("type") == "tool_use"]
    if calls and kinds[-len(calls) :] != ["tool_use"] * len(calls):
        raise Reject("bad_part", "text after a tool_use block, for which a turn of the model has no place", place)
    others = [
        _part(block, f"{place}.content[{i}]")
        for i, block in enumerate(blocks)
        if kinds[i] not in ("tool_result", "tool_use")
    ]
    if not others and not calls and results:
        return results
    turn = {**message, "content": others or None}
    return [*results, turn | ({"tool_calls": calls} if calls else {})]


def _set_keys(block: Any, place: str) -> dict[str, Any]:
    if not isinstance(block, Mapping):
        raise Reject("part_not_object", f"a block is {kind_of(block)}, expected an object", place)
    return {key: value for key, value in block.items() if value is not None and key != "cache_control"}


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": block.get("name"), "arguments": block.get("input", {})}
    return {"id": block.get("id"), "type": "function", "function": function}


def _result(block: Mapping[str, Any], place: str) -> dict[str, Any]:
    content = block.get("content", "")
    if isinstance(content, list):
        content = [_part(_set_keys(part, place), place) for part in content]
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}


def _part(block: dict[str, Any], place: str) -> dict[str, Any]:
    source = block.get("source")
    if block.get("type") != "image" or not isinstance(source, Mapping):
        return block
    if source.get("type") == "base64":
        return {"type": "image", "image": f"data:{source.get('media_type')};base64,{source.get('data')}"}
    if source.get("type") == "url":
        return {"type": "image_url", "image_url": source.get("url")}
    raise Reject("bad_part", f"an image source of type {source.get('type')!r}; expected base64 or url", place)


def _tools(tools: Any) -> Any:
    if isinstance(tools, str):
        tools = parse_json(tools, "tools")
    return [_tool(tool) for tool in tools] if isinstance(tools, list) else tools


def _tool(tool: Any) -> Any:
    if not isinstance(tool, Mapping) or "input_schema" not in tool:
        return tool
    function = {
        ("parameters" if key == "input_schema" else key): value
        for key, value in tool.items()
        if key not in ("type", "cache_control")
    }
    return {"type": "function", "function": function}


def _fits(record: Mapping[str, Any]) -> bool:
    return "messages" in record


def _marks(record: Mapping[str, Any]) -> bool:
    if any(isinstance(tool, Mapping) and tool.get("input_schema") is not None for tool in peeked(record, "tools")):
        return True
    blocks = peeked_parts(record)
    return any(block.get("type") in ("tool_use", "tool_result") or any(map(block.get, _KEYS)) for block in blocks)


FORM = Form(("messages",), _fits, _read, _marks)
