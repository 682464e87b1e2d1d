"""`chatgpt` between a real kernel and a server that speaks OpenAI's API: what goes up, what comes back, what
breaks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from calls import Answer, Stream, chat, chat_text, old_abort, old_chat, open_chat, stream_chat
from processes import Executor, Kernel, Stage, until
from providers import Provider, start_provider

KEY = "sk-canary-7f3a9c51"
OWN_KEY = "sk-own-canary-22b1"
CHINESE = "請說一個關於海的故事🌊，謝謝👩‍👩‍👧！"


@pytest.fixture(scope="module")
def openai(shared_stage: Stage) -> Provider:
    return start_provider(shared_stage, "openai_server", "--model", "gpt-fake")


@pytest.fixture(scope="module")
def executor(shared_stage: Stage, shared_kernel: Kernel, openai: Provider) -> Executor:
    return shared_stage.executor(
        "chatgpt", "--base_url", openai.base_url, "--api_key", KEY, "--model", "gpt-fake", "--log", "debug",
        "--use_third_party_api_key",
        kernel=shared_kernel,
    )  # fmt: skip


@pytest.fixture
def url(shared_kernel: Kernel, executor: Executor) -> Iterator[str]:
    """The kernel's URL; afterwards no slot may be held and no key may have been written anywhere."""
    yield shared_kernel.url
    until(lambda: shared_kernel.idle("chatgpt"), "every slot was given back")
    for place in (executor.process.log, shared_kernel.process.log, executor.get("/metrics").text):
        assert KEY not in place
        assert OWN_KEY not in place


# ---- what goes up and what comes back ----------------------------------------------------------------------


def test_text_comes_back_byte_for_byte_streamed_or_not(url: str) -> None:
    assert chat_text(url, "chatgpt", CHINESE) == CHINESE
    with stream_chat(url, "chatgpt", CHINESE, fake={"split_bytes": True}) as stream:
        assert stream.text() == CHINESE


def test_only_what_the_client_set_is_sent_and_under_the_operators_model(url: str, openai: Provider) -> None:
    chat_text(url, "chatgpt", "hi", temperature=0.25)
    assert openai.last["body"] == {
        "model": "gpt-fake",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.25,
    }
    assert openai.last["headers"]["authorization"] == f"Bearer {KEY}"


def test_the_providers_own_count_of_tokens_arrives(url: str) -> None:
    usage = chat(url, "chatgpt", "one two three", fake={"pieces": ["a", "b", "c"]}).json()["usage"]
    assert (usage["completion_tokens"], "estimated" in usage) == (3, False)
    with stream_chat(url, "chatgpt", "x", stream_options={"include_usage": True}, fake={"pieces": ["a"]}) as stream:
        *_, last = stream.events()
    assert last["usage"]["completion_tokens"] == 1


def test_a_finish_reason_arrives(url: str) -> None:
    assert chat(url, "chatgpt", "one two three", max_tokens=1).json()["choices"][0]["finish_reason"] == "length"
    filtered = chat(url, "chatgpt", "x", fake={"text": "no", "finish": "content_filter"}).json()
    assert filtered["choices"][0]["finish_reason"] == "content_filter"


def test_tools_go_up_and_tool_calls_come_back(url: str, openai: Provider) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    calls = [{"id": "call_1", "name": "weather", "arguments": '{"city": "臺北"}'}]
    answer = chat(url, "chatgpt", "weather?", tools=tools, tool_choice="auto", fake={"tool_calls": calls}).json()
    assert openai.last["body"]["tools"] == tools
    assert openai.last["body"]["tool_choice"] == "auto"
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "臺北"}'}}
    ]


def test_images_reasoning_and_fields_that_nobody_knows_pass_both_ways(url: str, openai: Provider) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "what?"}, image]}]
    fake = {"text": "a cat", "reasoning": "I look closely", "extra": {"system_fingerprint": "fp_1"}}
    answer = chat(url, "chatgpt", "", messages=messages, vendor={"deep": [1, None]}, fake=fake).json()
    assert openai.last["body"]["messages"] == messages
    assert openai.last["body"]["vendor"] == {"deep": [1, None]}
    assert answer["choices"][0]["message"]["content"] == "a cat"
    assert answer["choices"][0]["message"]["reasoning_content"] == "I look closely"
    assert answer["system_fingerprint"] == "fp_1"


def test_several_answers_at_once_are_kept_apart(url: str) -> None:
    choices = chat(url, "chatgpt", "one two", n=3).json()["choices"]
    assert [(choice["index"], choice["message"]["content"]) for choice in choices] == [
        (index, "one two") for index in range(3)
    ]


def test_the_old_wire_reaches_it_with_its_modelfile(url: str, openai: Provider) -> None:
    modelfile = '[{"name": "system", "args": "be a cat"}, {"name": "parameter", "args": "llm_temperature 0.75"}]'
    with old_chat(url, "chatgpt", CHINESE, modelfile=modelfile) as stream:
        assert stream.read().decode() == CHINESE
    assert openai.last["body"]["messages"] == [
        {"role": "system", "content": "be a cat"},
        {"role": "user", "content": CHINESE},
    ]
    assert openai.last["body"]["temperature"] == 0.75
    assert not [name for name in openai.last["body"] if name.startswith("kuwa")]


def test_old_turns_are_cut_to_the_context_window_and_the_client_is_told(stage: Stage, openai: Provider) -> None:
    kernel = stage.kernel()
    flags = ["--base_url", openai.base_url, "--api_key", KEY, "--model", "gpt-fake", "--context_window", "600"]
    stage.executor("chatgpt", *flags, kernel=kernel)
    trimming = stage.executor("chatgpt", *flags, "--trim_history", kernel=None)
    old, older, new = ("old " * 500, "older " * 500, "new")
    turns = [{"msg": old, "isbot": False}, {"msg": older, "isbot": True}, {"msg": new, "isbot": False}]
    with old_chat(kernel.url, "chatgpt", "", input=json.dumps(turns)) as stream:
        assert stream.read().decode() == new
    assert openai.last["body"]["messages"] == [{"role": "user", "content": new}]

    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, (old, older, new), strict=True)]
    chat(kernel.url, "chatgpt", "", messages=messages)
    assert openai.last["body"]["messages"] == messages
    answer = chat(trimming.url, "chatgpt", "", messages=messages)
    assert openai.last["body"]["messages"] == messages[-1:]
    assert answer.headers["x-kuwa-trimmed-messages"] == "2"


# ---- keys ---------------------------------------------------------------------------------------------------


def test_a_users_own_key_goes_before_the_operators(url: str, openai: Provider) -> None:
    chat(url, "chatgpt", "hi", {"x-kuwa-provider-key": OWN_KEY})
    assert openai.last["headers"]["authorization"] == f"Bearer {OWN_KEY}"
    with old_chat(url, "chatgpt", "hi", third_party_token=OWN_KEY) as stream:
        stream.read()
    assert openai.last["headers"]["authorization"] == f"Bearer {OWN_KEY}"


def test_a_users_key_for_openai_does_not_reach_another_server(url: str, openai: Provider, stage: Stage) -> None:
    with old_chat(url, "chatgpt", "hi", openai_token=OWN_KEY) as stream:
        stream.read()
    assert OWN_KEY not in str(openai.last)
    flags = ("--base_url", openai.base_url, "--api_key", KEY, "--model", "gpt-fake")
    elsewhere = stage.executor("chatgpt", *flags, kernel=None)
    assert chat(elsewhere.url, "chatgpt", "hi", {"x-kuwa-provider-key": OWN_KEY}).status == 200
    assert OWN_KEY not in str(openai.last)
    assert "--use_third_party_api_key" in elsewhere.process.log


def test_a_clients_bearer_token_is_for_kuwa_and_not_for_the_provider(url: str, openai: Provider) -> None:
    chat(url, "chatgpt", "hi", {"authorization": "Bearer kuwa-user-key"})
    assert openai.last["headers"]["authorization"] == f"Bearer {KEY}"


def test_without_a_key_it_starts_says_so_and_answers_401(stage: Stage, openai: Provider) -> None:
    keyless = stage.executor(
        "chatgpt", "--base_url", openai.base_url, "--use_third_party_api_key", kernel=None, OPENAI_API_KEY=""
    )
    assert "--api_key" in keyless.process.log
    refused = chat(keyless.url, "chatgpt", "hi")
    assert (refused.status, refused.error["code"]) == (401, "missing_api_key")
    assert "OPENAI_API_KEY" in refused.error["message"]
    answered = chat(keyless.url, "chatgpt", "hi", {"x-kuwa-provider-key": OWN_KEY}, fake={"status": 418})
    assert answered.error["message"] == "The fake server was told to fail."


def test_the_key_of_the_environment_is_used_and_a_users_own_can_be_forbidden(stage: Stage) -> None:
    openai = start_provider(stage, "openai_server", "--api_key", KEY)
    strict = stage.executor(
        "chatgpt", "--base_url", openai.base_url, "--use_third_party_api_key", "--no_override_api_key",
        kernel=None, OPENAI_API_KEY=KEY,
    )  # fmt: skip
    assert chat(strict.url, "chatgpt", "hi", {"x-kuwa-provider-key": OWN_KEY}).status == 200


def test_a_key_that_the_provider_refuses_is_an_error_without_the_key(stage: Stage) -> None:
    openai = start_provider(stage, "openai_server", "--api_key", "another")
    executor = stage.executor("chatgpt", "--base_url", openai.base_url, "--api_key", KEY, kernel=None)
    refused = chat(executor.url, "chatgpt", "hi")
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    assert "--api_key" in refused.error["message"]
    assert KEY not in refused.text + executor.process.log


# ---- trouble ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fake", "status", "code"),
    [
        ({"status": 400}, 400, "invalid_request_error"),
        ({"status": 400, "code": "context_length_exceeded"}, 400, "context_length_exceeded"),
        ({"status": 401}, 401, "invalid_api_key"),
        ({"status": 403}, 403, "permission_denied"),
        ({"status": 404}, 404, "model_not_found"),
        ({"status": 429}, 429, "rate_limit_exceeded"),
        ({"status": 500}, 502, "bad_upstream"),
        ({"status": 503}, 502, "bad_upstream"),
        ({"html": True}, 502, "bad_upstream"),
        ({"text": "abc", "reset_after": 0}, 502, "upstream_lost"),
        ({"text": "abc", "eof_after": 0}, 502, "upstream_lost"),
        ({"text": "abc", "error_after": 0}, 502, "bad_upstream"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_each_failure_of_the_provider_is_one_openai_error(
    executor: Executor, fake: dict[str, Any], status: int, code: str, streamed: bool
) -> None:
    refused = chat(executor.url, "chatgpt", "hi", stream=streamed, fake={"message": "because of the moon", **fake})
    assert (refused.status, refused.error["code"]) == (status, code)


def test_failures_pass_through_the_kernel_with_the_providers_words(url: str) -> None:
    refused = chat(url, "chatgpt", "hi", fake={"status": 400, "message": "because of the moon"})
    assert (refused.status, refused.error["message"]) == (400, "because of the moon")
    assert chat(url, "chatgpt", "hi", fake={"status": 401}).status == 401


def test_too_many_requests_tell_the_client_how_long_to_wait(executor: Executor) -> None:
    refused = chat(executor.url, "chatgpt", "hi", fake={"status": 429, "retry_after": "7"})
    assert (refused.status, refused.headers["retry-after"]) == (429, "7")


@pytest.mark.parametrize(
    ("fake", "code"),
    [
        ({"reset_after": 2}, "upstream_lost"),
        ({"eof_after": 2}, "upstream_lost"),
        ({"error_after": 2}, "bad_upstream"),
    ],
)
def test_a_stream_that_breaks_in_the_middle_ends_with_an_error_event(
    executor: Executor, fake: dict[str, Any], code: str
) -> None:
    with stream_chat(executor.url, "chatgpt", "hi", fake={"pieces": ["one ", "two ", "three"], **fake}) as stream:
        *events, last = stream.events()
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "one two "
    assert last["error"]["code"] == code


def test_a_model_that_the_provider_does_not_have_is_named(stage: Stage, openai: Provider) -> None:
    wrong = stage.executor(
        "chatgpt", "--base_url", openai.base_url, "--api_key", KEY, "--model", "gpt-none", kernel=None
    )
    refused = chat(wrong.url, "chatgpt", "hi")
    assert (refused.status, refused.error["code"]) == (404, "model_not_found")
    assert "gpt-none" in refused.error["message"]


def test_a_server_that_is_not_there_is_named_and_the_executor_lives_on(stage: Stage) -> None:
    nowhere = f"http://127.0.0.1:{stage.port()}/v1"
    executor = stage.executor("chatgpt", "--base_url", nowhere, "--api_key", KEY, kernel=None)
    for _ in range(2):
        refused = chat(executor.url, "chatgpt", "hi")
        assert (refused.status, refused.error["code"]) == (502, "bad_upstream")
        assert nowhere in refused.error["message"]


# ---- going away ---------------------------------------------------------------------------------------------

SLOW = {"pieces": [f"{number} " for number in range(1000)], "delay_s": 0.02}


def streaming(url: str) -> Stream:
    stream = stream_chat(url, "chatgpt", "count", fake=SLOW)
    stream.first_text()
    return stream


def thinking(url: str) -> Stream:
    return stream_chat(url, "chatgpt", "count", fake={**SLOW, "first_delay_s": 30})


def waiting(url: str) -> Stream:
    return open_chat(url, "chatgpt", "count", fake=SLOW)


@pytest.mark.parametrize("start", [streaming, thinking, waiting])
def test_a_client_that_goes_away_ends_the_providers_work(
    url: str, openai: Provider, start: Callable[[str], Stream]
) -> None:
    before = len(openai.asked)
    stream = start(url)
    until(lambda: len(openai.asked) > before, "the provider was asked")
    stream.close()
    until(lambda: openai.last["outcome"] == "client_gone", "the provider saw the client go")
    assert time.monotonic() - stream.closed_at < 0.5


def test_a_client_that_reads_slowly_slows_the_provider_down_and_gets_everything(stage: Stage) -> None:
    openai = start_provider(stage, "openai_server")
    executor = stage.executor("chatgpt", "--base_url", openai.base_url, "--api_key", KEY, kernel=None)
    piece, count = "x" * 65_536, 800
    sent = [-1]

    def stands_still() -> bool:
        sent.append(openai.last["events"] if openai.asked else 0)
        time.sleep(0.2)
        return sent[-1] == sent[-2] > 0

    with stream_chat(executor.url, "chatgpt", "", fake={"pieces": [piece], "times": count}) as stream:
        until(stands_still, "the provider waits")
        assert sent[-1] < count
        assert len(stream.text()) == count * len(piece)


def test_an_abort_of_the_old_wire_ends_the_providers_work(stage: Stage) -> None:
    kernel = stage.kernel()
    openai = start_provider(stage, "openai_server", "--delay", "0.02")
    stage.executor("chatgpt", "--base_url", openai.base_url, "--api_key", KEY, kernel=kernel)
    with old_chat(kernel.url, "chatgpt", "word " * 1000, history_id="-31", user_id="9") as stream:
        assert next(stream.pieces())
        assert old_abort(kernel.url, -31, user_id="9").status == 200
        stream.read()
    until(lambda: openai.last["outcome"] == "client_gone", "the provider saw the client go")
    until(lambda: kernel.idle("chatgpt"), "the slot was given back")


# ---- starting -----------------------------------------------------------------------------------------------


def refused_start(stage: Stage, *flags: str, **env: str) -> tuple[int, str]:
    executor = stage.executor("chatgpt", *flags, kernel=None, wait=False, **env)
    return executor.process.wait(), executor.process.log


def test_a_wrong_option_in_the_generation_config_is_named_with_the_nearest(stage: Stage) -> None:
    config = stage.folder / "generation.yaml"
    config.write_text("temprature: 0.2\n")
    code, log = refused_start(stage, "--api_key", KEY, "-c", str(config))
    assert code == 2
    assert "temperature" in log


def test_a_base_url_that_is_none_ends_the_start(stage: Stage) -> None:
    code, log = refused_start(stage, "--base_url", "localhost:8000/v1")
    assert code == 2
    assert "--base_url" in log


def test_generation_options_are_taken_from_file_and_command_line(stage: Stage, openai: Provider) -> None:
    config = stage.folder / "generation.json"
    config.write_text('{"temperature": 0.1, "top_p": 0.2, "seed": 3}')
    executor = stage.executor(
        "chatgpt", "--base_url", openai.base_url, "--api_key", KEY, "--model", "gpt-fake", "-c", str(config),
        "--top_p=0.3", "--seed", "4",
        kernel=None,
    )  # fmt: skip
    answer: Answer = chat(executor.url, "chatgpt", "hi", seed=5)
    assert answer.status == 200, answer
    body = openai.last["body"]
    assert (body["temperature"], body["top_p"], body["seed"]) == (0.1, 0.3, 5)
