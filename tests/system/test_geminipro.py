"""`geminipro` between a real kernel and a server that speaks Gemini's wire: what goes up, comes back and breaks."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from calls import Answer, Stream, chat, chat_text, old_chat, open_chat, post_json, stream_chat
from processes import Executor, Kernel, Stage, until
from providers import Provider, start_provider

pytest.importorskip("google.genai")

KEY = "AIza-canary-91d2e8"
OWN_KEY = "AIza-own-canary-77"
CHINESE = "請說一個關於海的故事🌊，謝謝👩‍👩‍👧！"
CODE = "gemini-pro"


def scripted(**fake: Any) -> str:
    return json.dumps({"fake": fake}, ensure_ascii=False)


@pytest.fixture(scope="module")
def gemini(shared_stage: Stage) -> Provider:
    return start_provider(shared_stage, "gemini_server")


@pytest.fixture(scope="module")
def executor(shared_stage: Stage, shared_kernel: Kernel, gemini: Provider) -> Executor:
    return shared_stage.executor(
        "geminipro", "--base_url", gemini.base_url, "--api_key", KEY, "--log", "debug", "--use_third_party_api_key",
        kernel=shared_kernel,
    )  # fmt: skip


@pytest.fixture
def url(shared_kernel: Kernel, executor: Executor) -> Iterator[str]:
    """The kernel's URL; afterwards no slot may be held and no key may have been written anywhere."""
    yield shared_kernel.url
    until(lambda: shared_kernel.idle(CODE), "every slot was given back")
    for place in (executor.process.log, shared_kernel.process.log, executor.get("/metrics").text):
        assert KEY not in place
        assert OWN_KEY not in place


def test_text_comes_back_byte_for_byte_streamed_or_not(url: str) -> None:
    assert chat_text(url, CODE, CHINESE) == CHINESE
    with stream_chat(url, CODE, scripted(text=CHINESE, split_bytes=True)) as stream:
        assert stream.text() == CHINESE


def test_only_what_the_client_set_is_sent_with_the_operators_key(url: str, gemini: Provider) -> None:
    chat_text(url, CODE, "hi", temperature=0.25, stop=["x"])
    assert gemini.last["body"] == {
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
        "generationConfig": {"temperature": 0.25, "stopSequences": ["x"]},
    }
    assert gemini.last["path"].endswith("/models/gemini-flash-latest:streamGenerateContent")
    assert gemini.last["headers"]["x-goog-api-key"] == KEY


def test_the_old_wire_reaches_it_with_its_modelfile_and_its_token(url: str, gemini: Provider) -> None:
    modelfile = '[{"name": "system", "args": "be a cat"}, {"name": "parameter", "args": "llm_temperature 0.75"}]'
    with old_chat(url, CODE, CHINESE, modelfile=modelfile, third_party_token=OWN_KEY) as stream:
        assert stream.read().decode() == CHINESE
    assert gemini.last["body"]["systemInstruction"]["parts"] == [{"text": "be a cat"}]
    assert gemini.last["body"]["generationConfig"] == {"temperature": 0.75}
    assert gemini.last["headers"]["x-goog-api-key"] == OWN_KEY


def test_thoughts_are_reasoning_and_are_counted(url: str) -> None:
    answer = chat(url, CODE, scripted(text="a cat", thoughts="let me see")).json()
    assert answer["choices"][0]["message"]["reasoning_content"] == "let me see"
    assert answer["choices"][0]["message"]["content"] == "a cat"
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3
    assert "estimated" not in answer["usage"]


def test_tools_go_up_and_tool_calls_come_back_with_their_signature(url: str, gemini: Provider) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    signature = base64.b64encode(b"thought").decode()
    text = scripted(calls=[{"name": "weather", "args": {"city": "臺北"}}], signature=signature)
    (choice,) = chat(url, CODE, text, tools=tools, tool_choice="required").json()["choices"]
    declared = gemini.last["body"]["tools"][0]["functionDeclarations"][0]
    assert (declared["name"], declared["parametersJsonSchema"]) == ("weather", {"type": "object"})
    assert gemini.last["body"]["toolConfig"]["functionCallingConfig"] == {"mode": "ANY"}
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "臺北"}

    result = {"role": "tool", "tool_call_id": call["id"], "content": "30"}
    turns = [{"role": "user", "content": "weather?"}, {"role": "assistant", "tool_calls": [call]}, result]
    assert chat(url, CODE, "", messages=[*turns, {"role": "user", "content": "so?"}], tools=tools).status == 200
    model, user = gemini.last["body"]["contents"][1:]
    assert model["parts"][0]["thoughtSignature"] == signature
    assert user["parts"][0]["functionResponse"] == {"name": "weather", "response": {"result": 30}}


def test_images_and_structured_output_go_up(url: str, gemini: Provider) -> None:
    data = base64.b64encode(b"\x89PNG").decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "what?"}, image]}]
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    assert chat(url, CODE, "", messages=messages, response_format=wanted).status == 200
    parts = gemini.last["body"]["contents"][0]["parts"]
    assert parts == [{"text": "what?"}, {"inlineData": {"mimeType": "image/png", "data": data}}]
    config = gemini.last["body"]["generationConfig"]
    assert config == {"responseMimeType": "application/json", "responseJsonSchema": {"type": "object"}}


def test_log_probabilities_several_answers_and_images_come_back(url: str) -> None:
    answer = chat(url, CODE, scripted(text="ab", logprobs=True), logprobs=True, top_logprobs=2).json()
    (entry,) = answer["choices"][0]["logprobs"]["content"]
    assert (entry["token"], entry["logprob"]) == ("ab", -0.25)
    assert [top["token"] for top in entry["top_logprobs"]] == ["ab", "?"]
    choices = chat(url, CODE, "one two", n=2).json()["choices"]
    assert [(choice["index"], choice["message"]["content"]) for choice in choices] == [(0, "one two"), (1, "one two")]
    drawn = chat(url, CODE, scripted(pieces=[], image=base64.b64encode(b"png").decode())).json()
    (image,) = drawn["choices"][0]["message"]["images"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("finish", "expected"),
    [("STOP", "stop"), ("MAX_TOKENS", "length"), ("SAFETY", "content_filter"), ("RECITATION", "content_filter")],
)
def test_finish_reasons_are_openais(url: str, finish: str, expected: str) -> None:
    assert chat(url, CODE, scripted(text="x", finish=finish)).json()["choices"][0]["finish_reason"] == expected


def test_embeddings_are_made_in_one_call(url: str, gemini: Provider) -> None:
    body = {"model": CODE, "input": ["a", "海"], "dimensions": 8}
    answer = post_json(url + "/v1/embeddings", body).json()
    assert [len(entry["embedding"]) for entry in answer["data"]] == [8, 8]
    assert answer["data"][0]["embedding"] != answer["data"][1]["embedding"]
    assert gemini.last["path"].endswith(":batchEmbedContents")


def test_a_prompt_above_the_limit_is_counted_by_gemini_and_cut_or_refused(stage: Stage, gemini: Provider) -> None:
    kernel = stage.kernel()
    stage.executor("geminipro", "--base_url", gemini.base_url, "--api_key", KEY, "--limit", "100", kernel=kernel)
    refused = chat(kernel.url, CODE, "word " * 200)
    assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")
    assert "--limit" in refused.error["message"]
    turns = [{"msg": "old " * 150, "isbot": False}, {"msg": "older", "isbot": True}, {"msg": "new", "isbot": False}]
    with old_chat(kernel.url, CODE, "", input=json.dumps(turns)) as stream:
        assert stream.read().decode() == "new"
    assert gemini.last["body"]["contents"] == [{"role": "user", "parts": [{"text": "new"}]}]


# ---- trouble ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fake", "status", "code"),
    [
        ({"status": 400}, 400, "invalid_request_error"),
        ({"status": 400, "reason": "API_KEY_INVALID"}, 401, "invalid_api_key"),
        (
            {"status": 400, "message": "The input token count (9) exceeds the maximum number of tokens allowed (7)."},
            400,
            "context_length_exceeded",
        ),
        ({"status": 401}, 401, "invalid_api_key"),
        ({"status": 403}, 403, "permission_denied"),
        ({"status": 404}, 404, "model_not_found"),
        ({"status": 429}, 429, "rate_limit_exceeded"),
        ({"status": 500}, 502, "bad_upstream"),
        ({"status": 503}, 502, "bad_upstream"),
        ({"status": 504}, 504, "upstream_timeout"),
        ({"html": True}, 502, "bad_upstream"),
        ({"block": "SAFETY"}, 400, "content_filter"),
        ({"text": "abc", "finish": "MALFORMED_FUNCTION_CALL", "pieces": []}, 502, "bad_upstream"),
        ({"text": "abc", "reset_after": 0}, 502, "upstream_lost"),
        ({"text": "abc", "eof_after": 0}, 502, "upstream_lost"),
        ({"text": "abc", "error_after": 0}, 502, "bad_upstream"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_each_failure_of_gemini_is_one_openai_error(
    executor: Executor, fake: dict[str, Any], status: int, code: str, streamed: bool
) -> None:
    refused = chat(executor.url, CODE, scripted(**fake), stream=streamed)
    assert (refused.status, refused.error["code"]) == (status, code)
    assert KEY not in refused.text


def test_a_quota_that_is_used_up_tells_the_client_how_long_to_wait(executor: Executor) -> None:
    refused = chat(executor.url, CODE, scripted(status=429, retry_delay="7s"))
    assert (refused.status, refused.headers["retry-after"]) == (429, "7")


@pytest.mark.parametrize("fake", [{"reset_after": 2}, {"eof_after": 2}, {"error_after": 2}])
def test_a_stream_that_breaks_in_the_middle_ends_with_an_error_event(executor: Executor, fake: dict[str, Any]) -> None:
    with stream_chat(executor.url, CODE, scripted(pieces=["one ", "two ", "three"], **fake)) as stream:
        *events, last = stream.events()
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "one two "
    assert last["error"]["code"] in {"upstream_lost", "bad_upstream"}


def test_a_key_that_google_refuses_is_an_error_without_the_key(stage: Stage) -> None:
    gemini = start_provider(stage, "gemini_server", "--api_key", "another")
    executor = stage.executor("geminipro", "--base_url", gemini.base_url, "--api_key", KEY, kernel=None)
    refused = chat(executor.url, CODE, "hi")
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    assert "--api_key" in refused.error["message"]
    assert KEY not in refused.text + executor.process.log


@pytest.mark.parametrize("variable", ["GEMINI_API_KEY", "GOOGLE_API_KEY"])
def test_the_key_of_the_environment_is_used(stage: Stage, gemini: Provider, variable: str) -> None:
    executor = stage.executor("geminipro", "--base_url", gemini.base_url, kernel=None, **{variable: KEY})
    assert chat_text(executor.url, CODE, "hi") == "hi"
    assert gemini.last["headers"]["x-goog-api-key"] == KEY


def test_without_a_key_it_starts_says_so_and_answers_401(stage: Stage, gemini: Provider) -> None:
    keyless = stage.executor("geminipro", "--base_url", gemini.base_url, "--use_third_party_api_key", kernel=None)
    assert "GEMINI_API_KEY" in keyless.process.log
    refused = chat(keyless.url, CODE, "hi")
    assert (refused.status, refused.error["code"]) == (401, "missing_api_key")
    answered: Answer = chat(keyless.url, CODE, "hi", {"x-kuwa-provider-key": OWN_KEY})
    assert answered.status == 200


def test_a_users_key_for_google_does_not_reach_another_server(stage: Stage, gemini: Provider) -> None:
    elsewhere = stage.executor("geminipro", "--base_url", gemini.base_url, "--api_key", KEY, kernel=None)
    assert chat(elsewhere.url, CODE, "hi", {"x-kuwa-provider-key": OWN_KEY}).status == 200
    assert OWN_KEY not in str(gemini.last)


def test_a_server_that_is_not_there_is_named(stage: Stage) -> None:
    nowhere = f"http://127.0.0.1:{stage.port()}"
    executor = stage.executor("geminipro", "--base_url", nowhere, "--api_key", KEY, kernel=None)
    refused = chat(executor.url, CODE, "hi")
    assert (refused.status, refused.error["code"]) == (502, "bad_upstream")
    assert nowhere in refused.error["message"]


def test_a_silent_server_is_given_up(stage: Stage, gemini: Provider) -> None:
    executor = stage.executor(
        "geminipro", "--base_url", gemini.base_url, "--api_key", KEY, "--timeout", "0.5", kernel=None
    )
    refused = chat(executor.url, CODE, scripted(text="x", first_delay_s=30))
    assert (refused.status, refused.error["code"]) == (504, "upstream_timeout")


def test_a_missing_package_is_named_with_the_command_that_installs_it(stage: Stage) -> None:
    hidden = stage.folder / "hidden" / "google"
    (hidden / "genai").mkdir(parents=True)
    (hidden / "__init__.py").write_text("")
    (hidden / "genai" / "__init__.py").write_text("raise ImportError(\"No module named 'google.genai'\")\n")
    executor = stage.executor("geminipro", kernel=None, wait=False, PYTHONPATH=str(hidden.parent))
    assert executor.process.wait() == 4
    assert "pip install 'kuwa[gemini]'" in executor.process.log


# ---- going away ---------------------------------------------------------------------------------------------

SLOW = {"pieces": [f"{number} " for number in range(1000)], "delay_s": 0.02}


def streaming(url: str) -> Stream:
    stream = stream_chat(url, CODE, scripted(**SLOW))
    stream.first_text()
    return stream


def thinking(url: str) -> Stream:
    return stream_chat(url, CODE, scripted(**SLOW, first_delay_s=30))


def waiting(url: str) -> Stream:
    return open_chat(url, CODE, scripted(**SLOW))


@pytest.mark.parametrize("start", [streaming, thinking, waiting])
def test_a_client_that_goes_away_ends_geminis_work(url: str, gemini: Provider, start: Callable[[str], Stream]) -> None:
    before = len(gemini.asked)
    stream = start(url)
    until(lambda: len(gemini.asked) > before, "Gemini was asked")
    stream.close()
    until(lambda: gemini.last["outcome"] == "client_gone", "Gemini saw the client go")
    assert time.monotonic() - stream.closed_at < 0.5
