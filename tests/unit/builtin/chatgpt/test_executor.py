"""From the command line and a request to the body and the key that the provider is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kuwa.builtin.chatgpt import ChatGPTExecutor
from kuwa.builtin.chatgpt.executor import asked_for, fill_in, pair
from kuwa.executor import Request
from kuwa.executor.arguments import UsageError
from kuwa.executor.invocation import Invocation, invoked
from kuwa.executor.modelfile import Modelfile, ParameterDict


def executor(*arguments: str, **environment: str) -> ChatGPTExecutor:
    with invoked(Invocation("kuwa-executor chatgpt", arguments, environment, "chatgpt")):
        made = ChatGPTExecutor()
    made.setup()
    return made


def request(*messages: dict[str, Any], **fields: Any) -> Request:
    given = list(messages) or [{"role": "user", "content": "hi"}]
    body = {"model": "chatgpt", "messages": given, **fields.pop("body", {})}
    return Request(id="req_1", access_code="chatgpt", messages=given, conversation=given, body=body, **fields)


def parameters(**values: Any) -> Modelfile:
    return Modelfile(parameters=ParameterDict(values))


def test_only_what_was_set_is_sent() -> None:
    assert executor().provider_body(request()) == {
        "model": "gpt-3.5-turbo",
        "messages": [{"role": "user", "content": "hi"}],
    }


def test_a_stream_is_asked_for_with_its_usage() -> None:
    body = executor().provider_body(request(body={"stream": True}, stream=True))
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})


def test_options_go_from_the_file_under_the_command_line_under_the_request(tmp_path: Path) -> None:
    config = tmp_path / "generation.yaml"
    config.write_text("temperature: 0.1\ntop_p: 0.2\nseed: 3\n")
    made = executor("-c", str(config), "--top_p=0.3", "--seed", "4")
    body = made.provider_body(request(body={"seed": 5}))
    assert (body["temperature"], body["top_p"], body["seed"]) == (0.1, 0.3, 5)


def test_a_null_in_the_request_leaves_the_operators_value_in_force() -> None:
    assert executor("--temperature", "0.5").provider_body(request(body={"temperature": None}))["temperature"] == 0.5


def test_a_modelfiles_parameters_go_over_the_command_line() -> None:
    made = executor("--temperature", "0.5")
    assert made.provider_body(request(modelfile=parameters(llm_temperature=0.7)))["temperature"] == 0.7


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_either_spelling_of_the_token_limit_replaces_the_operators(limit: str) -> None:
    body = executor("--max_tokens", "10").provider_body(request(body={limit: 20}))
    assert {name: body[name] for name in ("max_tokens", "max_completion_tokens") if name in body} == {limit: 20}


def test_what_the_framework_does_not_know_passes_through_unharmed() -> None:
    fields = {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_object"},
        "chat_template_kwargs": {"enable_thinking": False},
        "top_k": 7,
        "metadata": None,
    }
    body = executor().provider_body(request(body=fields))
    assert {name: body[name] for name in fields} == fields


def test_kuwas_own_fields_do_not_reach_the_provider() -> None:
    body = executor().provider_body(request(body={"kuwa": {"form": {"openai_token": "x"}}, "kuwa_resume": {}}))
    assert not [name for name in body if name.startswith("kuwa")]


def test_the_clients_stream_options_are_kept() -> None:
    body = executor().provider_body(request(body={"stream_options": {"include_obfuscation": False}}, stream=True))
    assert body["stream_options"] == {"include_obfuscation": False, "include_usage": True}


SYSTEM = {"role": "system", "content": "be brief"}
USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("arguments", "messages", "expected"),
    [
        (["--system_prompt", "be brief"], [USER], [SYSTEM, USER]),
        (["--system_prompt", "other"], [SYSTEM, USER], [SYSTEM, USER]),
        (["--system_prompt", "be brief", "--no_system_prompt"], [USER], [USER]),
        ([], [USER], [USER]),
    ],
)
def test_the_system_prompt_is_put_before_conversations_without_one(
    arguments: list[str], messages: list[dict[str, Any]], expected: list[dict[str, Any]]
) -> None:
    assert executor(*arguments).provider_body(request(*messages))["messages"] == expected


def test_messages_go_as_they_were_sent() -> None:
    sent = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
        {"role": "system", "content": "now be long"},
        {"role": "user", "content": "more"},
    ]
    assert executor().provider_body(request(*sent))["messages"] == sent


def test_a_modelfile_is_put_around_the_conversation_and_overrides_its_system_prompt() -> None:
    modelfile = Modelfile(override_system_prompt="be a cat", before_prompt="<", after_prompt=">")
    made = executor("--system_prompt", "be a dog")
    assert made.provider_body(request(SYSTEM, USER, modelfile=modelfile))["messages"] == [
        {"role": "system", "content": "be a cat"},
        {"role": "user", "content": "<hi>"},
    ]


def test_a_request_of_the_old_wire_has_no_body_and_is_a_chat_all_the_same() -> None:
    asked = Request(id="r", access_code="c", messages=[USER], conversation=[USER], form={"input": "…"})
    assert executor().provider_body(asked)["messages"] == [USER]


def test_a_plain_completion_keeps_its_prompt_and_gets_no_chat_options() -> None:
    made = executor("--temperature", "0.5", "--logprobs", "true", "--max_completion_tokens", "9")
    asked = Request(id="r", access_code="c", kind="completion", body={"model": "c", "prompt": "once", "echo": True})
    body = made.provider_body(asked)
    assert (body["prompt"], body["echo"], body["temperature"]) == ("once", True, 0.5)
    assert not {"messages", "logprobs", "max_completion_tokens"} & set(body)


def test_a_context_window_of_nothing_is_refused_at_start() -> None:
    with pytest.raises(UsageError, match="--context_window"):
        executor("--context_window", "0")


def test_the_default_access_code_is_chatgpt_and_can_be_chosen() -> None:
    assert executor().access_codes == ("chatgpt",)
    assert executor("--access_code", "vllm").access_codes == ("vllm",)


def test_several_models_are_served_pairwise_under_their_access_codes() -> None:
    made = executor("--model", "gpt-a", "--access_code", "a", "--model", "gpt-b", "--access_code", "b")
    bodies = [made.provider_body(Request(id="r", access_code=code, messages=[USER])) for code in ("a", "b")]
    assert [body["model"] for body in bodies] == ["gpt-a", "gpt-b"]


def test_one_model_may_have_several_access_codes() -> None:
    assert pair(["a", "b"], ["m"]) == {"a": "m", "b": "m"}


@pytest.mark.parametrize("codes", [["a"], ["a", "b", "c"]])
def test_models_that_do_not_pair_with_their_access_codes_are_refused_at_start(codes: list[str]) -> None:
    with pytest.raises(UsageError, match="--access_code"):
        pair(codes, ["m", "n"])


def test_the_context_window_is_announced() -> None:
    assert executor("--context_window", "4096").context_length == 4096
    assert executor().context_length == 0


def test_filling_in_changes_neither_side() -> None:
    asked, defaults = {"a": None, "max_tokens": 1}, {"a": 1, "max_tokens": 2, "b": 3}
    assert fill_in(asked, defaults) == {"a": 1, "max_tokens": 1, "b": 3}
    assert (asked, defaults) == ({"a": None, "max_tokens": 1}, {"a": 1, "max_tokens": 2, "b": 3})


def test_the_requests_own_fields_go_over_the_modelfiles() -> None:
    asked = request(modelfile=parameters(llm_temperature=0.2, llm_seed=1, other=2), body={"temperature": 0.9})
    assert asked_for(asked)["temperature"] == 0.9
    assert asked_for(asked)["seed"] == 1
    assert "other" not in asked_for(asked)
