"""What is sent to llama.cpp's server for a request. Pure; the executor calls it and the engine sends it.

Only known fields are passed on: llama.cpp's server would also take file paths, slots and adapters from a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kuwa.builtin.llamacpp.sampling import PARAMETERS
from kuwa.executor.options import merge
from kuwa.executor.prompt import Message, text_of
from kuwa.executor.request import Request
from kuwa.wire.errors import InvalidRequest

PASSED_ON = ("n", "parallel_tool_calls", "chat_template_kwargs")
"""Fields that are no generation options and mean the same to llama.cpp."""


def chat_payload(request: Request, defaults: Mapping[str, Any], messages: list[Message]) -> dict[str, Any]:
    """The body for `/v1/chat/completions`. `defaults` are the options set when the executor was started."""
    payload = {**_common(request, defaults), "messages": messages, **_tools(request)}
    if request.response_format is not None:
        payload["response_format"] = request.response_format
    return payload


def completion_payload(request: Request, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The body for `/v1/completions`: the prompt as it stands, without a chat template."""
    return {**_common(request, defaults), "prompt": text_of(request.messages[0])}


def _common(request: Request, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Always a stream: only then does llama.cpp free the slot at once when the connection is closed."""
    payload = merge(defaults, request.parameters, PARAMETERS)
    payload.update((name, request.body[name]) for name in PASSED_ON if request.body.get(name) is not None)
    payload.update(stream=True, stream_options={"include_usage": True})
    if request.resume is not None:
        # Numbers round otherwise after a prompt that was read in another number of pieces.
        payload["cache_prompt"] = False
    return payload


def _tools(request: Request) -> dict[str, Any]:
    """The tool fields. A named function is sent as the only one there is: llama.cpp does not look at the name."""
    choice = request.tool_choice
    if not request.tools:
        return {}
    if isinstance(choice, dict):
        name = choice.get("function", {}).get("name")
        tools = [tool for tool in request.tools if tool.get("function", {}).get("name") == name]
        if not tools:
            raise InvalidRequest(f"tool_choice names {name!r}, which is none of the tools.", param="tool_choice")
        return {"tools": tools, "tool_choice": "required"}
    return {"tools": request.tools, **({} if choice is None else {"tool_choice": choice})}
