"""Tools of a record, and calls of them: the OpenAI form, with JSON text where tables have JSON text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmms.prep.records.absent import is_absent
from lmms.prep.records.strict_json import kind_of, parse_json
from lmms.prep.reject import Reject


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant turn makes."""

    name: str
    arguments: Mapping[str, Any]
    """JSON values by name; text that held a JSON object was parsed, since templates write JSON themselves."""
    id: str | None


def parse_tools(raw: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The tools of a record, each as {"type": "function", "function": {"name": ...}}.

    Columns: `tools`, or the older `functions`; a list, or JSON text of a list. Raises Reject.
    """
    given = {column: raw[column] for column in ("tools", "functions") if not is_absent(raw.get(column))}
    if not given:
        return ()
    if len(given) == 2:
        raise Reject("bad_tools", "`tools` and `functions` are both set; expected one of them", "tools")
    ((column, tools),) = given.items()
    if isinstance(tools, str):
        tools = parse_json(tools, column)
    if not isinstance(tools, list):
        raise Reject("bad_tools", f"`{column}` is {kind_of(tools)}, expected a list of tools", column)
    return tuple(_tool(tool, f"{column}[{i}]") for i, tool in enumerate(tools))


def _tool(tool: Any, place: str) -> Mapping[str, Any]:
    if isinstance(tool, str):
        tool = parse_json(tool, place)
    if not isinstance(tool, Mapping):
        raise Reject("bad_tools", f"a tool is {kind_of(tool)}, expected an object", place)
    wrapped: Mapping[str, Any] = tool if "function" in tool else {"type": "function", "function": tool}
    function = wrapped["function"]
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise Reject("bad_tools", "a tool without the name of its function; expected {function: {name: ...}}", place)
    return wrapped


def parse_calls(message: Mapping[str, Any], place: str) -> tuple[ToolCall, ...]:
    """The calls of a message: `tool_calls`, or the older `function_call`. Raises Reject."""
    calls, function_call = message.get("tool_calls"), message.get("function_call")
    if isinstance(calls, str) and not is_absent(calls):
        calls = parse_json(calls, f"{place}.tool_calls")
    if is_absent(calls):
        return () if is_absent(function_call) else (_call(function_call, f"{place}.function_call"),)
    if not is_absent(function_call):
        raise Reject("bad_tool_call", "`tool_calls` and `function_call` are both set; expected one of them", place)
    if not isinstance(calls, list):
        raise Reject("bad_tool_call", f"`tool_calls` is {kind_of(calls)}, expected a list", f"{place}.tool_calls")
    return tuple(_call(call, f"{place}.tool_calls[{i}]") for i, call in enumerate(calls))


def _call(call: Any, place: str) -> ToolCall:
    if not isinstance(call, Mapping):
        raise Reject("bad_tool_call", f"a call is {kind_of(call)}, expected an object", place)
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise Reject("bad_tool_call", "a call without the name of a function; expected {function: {name: ...}}", place)
    call_id = call.get("id")
    if not isinstance(call_id, str | None):
        raise Reject("bad_tool_call", f"`id` is {kind_of(call_id)}, expected a string", place)
    return ToolCall(function["name"], _arguments(function.get("arguments"), place), call_id)


def _arguments(arguments: Any, place: str) -> Mapping[str, Any]:
    if arguments is None:
        return {}
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments, place)
        except Reject as reject:
            raise Reject("bad_tool_arguments", f"`arguments` is text, but not JSON: {reject.message}", place) from None
    if not isinstance(arguments, Mapping):
        raise Reject("bad_tool_arguments", f"`arguments` is {kind_of(arguments)}, expected an object", place)
    return arguments
