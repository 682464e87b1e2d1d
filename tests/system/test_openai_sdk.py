"""The official OpenAI client in front of our kernel: everything it asks, it understands the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from calls import post_json
from processes import Kernel, Stage

TEXT = "Reflect this, 請照樣說一遍: 🌊"
MESSAGES = [{"role": "user", "content": TEXT}]


@pytest.fixture(scope="module")
def front(shared_stage: Stage, shared_kernel: Kernel) -> Kernel:
    """A kernel with two models behind it."""
    shared_stage.executor("debug", "--delay", "0", "--concurrency", "8", kernel=shared_kernel)
    shared_stage.executor("dummy", "--delay", "0", kernel=shared_kernel, access_code="models/dummy:1")
    return shared_kernel


@pytest.fixture
def client(front: Kernel) -> Iterator[OpenAI]:
    with OpenAI(base_url=front.url + "/v1", api_key="sk-none-needed", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
async def aclient(front: Kernel) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=front.url + "/v1", api_key="sk-none-needed", max_retries=0) as sdk:
        yield sdk


def test_the_list_of_models(client: OpenAI) -> None:
    models = list(client.models.list())
    assert sorted(model.id for model in models) == ["debug", "models/dummy:1"]
    for model in models:
        Model.model_validate(model.model_dump(), strict=True)
        assert model.object == "model"


def test_one_model_whose_name_holds_a_slash_and_a_colon(client: OpenAI) -> None:
    assert client.models.retrieve("models/dummy:1").id == "models/dummy:1"


def test_a_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="debug", messages=MESSAGES)
    ChatCompletion.model_validate(answer.model_dump(exclude_unset=True), strict=True)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "debug"
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream(client: OpenAI) -> None:
    with client.chat.completions.create(model="debug", messages=MESSAGES, stream=True) as stream:
        chunks = list(stream)
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(exclude_unset=True), strict=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_with_usage(client: OpenAI) -> None:
    *chunks, last = client.chat.completions.create(
        model="debug", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == []
    assert last.usage
    assert last.usage.completion_tokens > 0
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT


def test_the_sdks_own_stream_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(model="debug", messages=MESSAGES) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == TEXT


def test_a_plain_completion(client: OpenAI) -> None:
    answer = client.completions.create(model="debug", prompt=TEXT)
    Completion.model_validate(answer.model_dump(exclude_unset=True), strict=True)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == TEXT


def test_a_plain_completion_streamed(client: OpenAI) -> None:
    chunks = list(client.completions.create(model="debug", prompt=TEXT, stream=True))
    for chunk in chunks:
        message = chunk.model_dump(exclude_unset=True)
        # OpenAI sends null until the last one, although the SDK's model has no place for it.
        message["choices"][0]["finish_reason"] = message["choices"][0]["finish_reason"] or "stop"
        Completion.model_validate(message, strict=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]


def test_a_raw_response_shows_the_ids_of_the_request(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="debug", messages=MESSAGES, extra_headers={"x-request-id": "my-own-id 17"}
    )
    assert raw.status_code == 200
    assert raw.headers["x-request-id"] == "my-own-id 17"
    assert raw.headers["x-kuwa-request-id"].startswith("req_")
    assert raw.parse().choices[0].message.content == TEXT


def test_a_streaming_response_is_read_line_by_line(client: OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(
        model="debug", messages=MESSAGES, stream=True, extra_headers={"x-request-id": "s-1"}
    ) as response:
        assert response.headers["x-request-id"] == "s-1"
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


def test_a_request_without_an_id_is_given_the_kernels(client: OpenAI) -> None:
    for raw in (
        client.models.with_raw_response.list(),
        client.chat.completions.with_raw_response.create(model="debug", messages=MESSAGES),
    ):
        assert raw.headers["x-request-id"] == raw.headers["x-kuwa-request-id"]
        assert raw.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_not_found(client: OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such-model", messages=MESSAGES, stream=stream)
    assert caught.value.code == "model_not_found"
    assert caught.value.type == "invalid_request_error"
    assert "no-such-model" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"messages": "no list"}, id="messages that are no list"),
        pytest.param({"messages": []}, id="no message"),
        pytest.param({"messages": [{"content": "no role"}]}, id="a message without a role"),
        pytest.param({"messages": MESSAGES, "stream_options": {"include_usage": True}}, id="options without stream"),
        pytest.param({"messages": MESSAGES, "stream": "yes"}, id="a stream that is no boolean"),
        pytest.param({"messages": MESSAGES, "temperature": "hot"}, id="a temperature that is no number"),
        pytest.param({"messages": MESSAGES, "logprobs": True, "top_logprobs": 21}, id="more than 20 top_logprobs"),
        pytest.param({"model": 7, "messages": MESSAGES}, id="a model that is no text"),
    ],
)
def test_a_bad_body_is_a_bad_request(client: OpenAI, body: dict[str, object]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", cast_to=ChatCompletion, body={"model": "debug", **body})
    assert caught.value.type == "invalid_request_error"
    assert caught.value.message


def test_the_client_id_of_a_refused_request_is_echoed_too(front: Kernel) -> None:
    answer = post_json(
        front.url + "/v1/chat/completions", {"model": "nobody", "messages": MESSAGES}, {"x-request-id": "oops-1"}
    )
    assert answer.status == 404
    assert answer.headers["x-request-id"] == "oops-1"


@pytest.mark.parametrize("bad", ["x" * 129, "tab\tbed"])
def test_an_id_that_cannot_be_echoed_is_replaced(front: Kernel, bad: str) -> None:
    body = {"model": "debug", "messages": MESSAGES}
    answer = post_json(front.url + "/v1/chat/completions", body, {"x-request-id": bad})
    assert answer.status == 200
    assert answer.headers["x-request-id"].startswith("req_")


async def test_the_async_client_with_many_at_once(aclient: AsyncOpenAI) -> None:
    texts = [f"number {index} 號 " + "字" * index for index in range(16)]

    async def ask(text: str, *, stream: bool) -> str:
        messages = [{"role": "user", "content": text}]
        if not stream:
            answer = await aclient.chat.completions.create(model="debug", messages=messages)
            return answer.choices[0].message.content or ""
        pieces = await aclient.chat.completions.create(model="debug", messages=messages, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in pieces])

    answers = await asyncio.gather(*[ask(text, stream=index % 2 == 0) for index, text in enumerate(texts)])
    assert list(answers) == texts


async def test_the_async_clients_list_and_raw_response(aclient: AsyncOpenAI) -> None:
    assert [model.id async for model in aclient.models.list()]
    raw = await aclient.chat.completions.with_raw_response.create(model="debug", messages=MESSAGES)
    assert raw.parse().choices[0].message.content == TEXT


async def test_the_async_client_can_leave_a_stream(aclient: AsyncOpenAI) -> None:
    long = [{"role": "user", "content": "word " * 20_000}]
    async with await aclient.chat.completions.create(model="debug", messages=long, stream=True) as stream:
        async for chunk in stream:
            assert chunk.id
            break
    answer = await aclient.chat.completions.create(model="debug", messages=MESSAGES)
    assert answer.choices[0].message.content == TEXT
