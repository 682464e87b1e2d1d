"""A stream outlives its executor: another one computes it again, and the client sees one unbroken answer."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionChunk

from calls import chat_body, old_chat, post_json, stream_chat
from processes import REPOSITORY, Executor, Kernel, Stage, until

ORACLE = str(REPOSITORY / "tests" / "oracle.py")
TOKENS = 40


def replicas(stage: Stage, kernel: Kernel, count: int = 2) -> list[Executor]:
    return [stage.executor(ORACLE, kernel=kernel, access_code="oracle") for _ in range(count)]


def whole(kernel: Kernel, script: dict[str, Any], **parameters: Any) -> str:
    body = chat_body("oracle", "go", oracle=script, **parameters)
    return post_json(kernel.url + "/v1/chat/completions", body).json()["choices"][0]["message"]["content"]


def who_runs_it(kernel: Kernel, executors: list[Executor]) -> Executor:
    (busy,) = [r["endpoint"] for r in kernel.replicas("oracle") if r["running"]]
    return next(executor for executor in executors if f":{executor.port}/" in busy)


def broken_stream(
    kernel: Kernel, executors: list[Executor], script: dict[str, Any], after: int, **parameters: Any
) -> list[dict[str, Any]]:
    """The events of a stream whose executor is killed after `after` pieces of text."""
    events: list[dict[str, Any]] = []
    with stream_chat(kernel.url, "oracle", "go", oracle=script, **parameters) as stream:
        for event in stream.events():
            events.append(event)
            if sum(bool(text_of(one)) for one in events) == after and text_of(event):
                who_runs_it(kernel, executors).process.kill()
    return events


def text_of(event: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))


@pytest.mark.parametrize("kind", [{}, {"seeded": True}, {"ids": True}, {"ids": True, "chunk": 3}, {"chunk": 4}])
def test_the_client_sees_one_answer(stage: Stage, kernel: Kernel, kind: dict[str, Any]) -> None:
    script = {"id": "r", "tokens": TOKENS, "delay": 0.01, **kind}
    executors = replicas(stage, kernel)
    usage = {"stream_options": {"include_usage": True}}
    events = broken_stream(kernel, executors, script, 5, seed=7, temperature=1.0, **usage)
    assert "".join(map(text_of, events)) == whole(kernel, script, seed=7)
    assert len({event["id"] for event in events}) == 1
    assert len({event["created"] for event in events}) == 1
    assert [bool(choice["delta"].get("role")) for e in events for choice in e["choices"]].count(True) == 1
    assert events[-1]["usage"]["completion_tokens"] == TOKENS
    assert [c["finish_reason"] for e in events for c in e["choices"] if c["finish_reason"]] == ["stop"]
    assert kernel.metric("kuwa_resumes_total", outcome="resumed") == 1
    until(lambda: kernel.idle("oracle"), "the slots were freed")


def test_a_seed_that_the_client_did_not_give_is_the_first_executors(stage: Stage, kernel: Kernel) -> None:
    script = {"id": "r", "tokens": TOKENS, "delay": 0.01, "seeded": True}
    text = "".join(map(text_of, broken_stream(kernel, replicas(stage, kernel), script, 5)))
    draws = [token.partition("~") for token in text.split()]
    assert [label for label, _, _ in draws] == [f"r.{number}" for number in range(TOKENS)]
    assert kernel.metric("kuwa_resumes_total", outcome="resumed") == 1


def test_known_tokens_are_not_computed_again(stage: Stage, kernel: Kernel) -> None:
    """With the ids beside the events a long answer goes on at once instead of after as long again."""
    script = {"id": "r", "tokens": TOKENS, "delay": 0.05, "ids": True}
    executors = replicas(stage, kernel)
    with stream_chat(kernel.url, "oracle", "go", oracle=script) as stream:
        pieces = stream.deltas()
        text = "".join(next(pieces) for _ in range(TOKENS - 5))
        who_runs_it(kernel, executors).process.kill()
        killed = time.monotonic()
        text += next(pieces)
        assert time.monotonic() - killed < 1
        assert text + "".join(pieces) == whole(kernel, {**script, "delay": 0})


def test_a_different_answer_is_never_spliced_in(stage: Stage, kernel: Kernel) -> None:
    script = {"id": "r", "tokens": TOKENS, "delay": 0.01, "wobble": True}
    events = broken_stream(kernel, replicas(stage, kernel), script, 5)
    assert events[-1]["error"]["code"] == "upstream_lost"
    tokens = "".join(map(text_of, events[:-1])).split()
    assert len({token.partition("~")[2] for token in tokens}) == 1
    assert kernel.metric("kuwa_resumes_total", outcome="failed") == 1


def test_without_another_executor_of_the_same_model_it_is_the_typed_error(stage: Stage, kernel: Kernel) -> None:
    executors = replicas(stage, kernel, 1)
    stage.executor("debug", kernel=kernel, access_code="oracle")
    while True:
        script = {"id": "r", "tokens": TOKENS, "delay": 0.01}
        with stream_chat(kernel.url, "oracle", "go", oracle=script) as stream:
            first = stream.first_text()
            if first.startswith("r."):
                executors[0].process.kill()
                events = list(stream.events())
                break
    assert events[-1]["error"]["code"] == "upstream_lost"


def test_a_client_cannot_ask_for_it_itself(kernel: Kernel) -> None:
    answer = post_json(kernel.url + "/v1/chat/completions", chat_body("oracle", "go", stream=True, kuwa_resume={}))
    assert (answer.status, answer.error["param"]) == (400, "kuwa_resume")


def test_the_executors_announcement_does_not_reach_the_client(stage: Stage, kernel: Kernel) -> None:
    replicas(stage, kernel, 1)
    with stream_chat(kernel.url, "oracle", "go", oracle={"tokens": 3}) as stream:
        assert b": r " not in stream.read()


def test_several_losses_of_one_stream(stage: Stage, kernel: Kernel) -> None:
    script = {"id": "r", "tokens": 120, "delay": 0.01, "seeded": True}
    executors = replicas(stage, kernel, 4)
    chance = random.Random(4)  # noqa: S311 - seeded, so that a failure comes again
    places = sorted(chance.sample(range(2, 110), 3))
    seen = 0
    text = ""
    with stream_chat(kernel.url, "oracle", "go", oracle=script, seed=3) as stream:
        for piece in stream.deltas():
            text += piece
            seen += 1
            if places and seen >= places[0]:
                places.pop(0)
                who_runs_it(kernel, executors).process.kill()
    assert text == whole(kernel, {**script, "delay": 0}, seed=3)


def test_an_answer_longer_than_its_journal_ends_with_the_typed_error(stage: Stage, kernel: Kernel) -> None:
    executors = replicas(stage, kernel)
    script = {"id": "r", "tokens": 20_000, "delay": 0, "chunk": 10, "hang_after": 19_000}
    kept = 0
    with stream_chat(kernel.url, "oracle", "go", oracle=script) as stream:
        events = stream.events()
        while kept < 300_000:
            kept += len(str(next(events)))
        who_runs_it(kernel, executors).process.kill()
        last = list(events)[-1]
    assert last["error"]["code"] == "upstream_lost"
    assert kernel.metric("kuwa_resumes_total", outcome="impossible") == 1


def test_a_client_of_the_old_wire_sees_one_answer(stage: Stage, kernel: Kernel) -> None:
    executors = replicas(stage, kernel)
    asked = {"oracle_id": "r", "oracle_tokens": TOKENS, "oracle_delay": 0.01, "oracle_seeded": "true"}
    modelfile = json.dumps([{"name": "parameter", "args": f"{key} {value}"} for key, value in asked.items()])
    with old_chat(kernel.url, "oracle", "go", modelfile=modelfile) as stream:
        text = b""
        killed = False
        for piece in stream.pieces():
            text += piece
            if not killed and text.count(b" ") >= 5:
                killed = True
                who_runs_it(kernel, executors).process.kill()
    numbers = [token.partition("~")[0] for token in text.decode().split()]
    assert numbers == [f"r.{number}" for number in range(TOKENS)]
    assert kernel.metric("kuwa_resumes_total", outcome="resumed") == 1


def test_openai_python_sees_one_ordinary_stream(stage: Stage, kernel: Kernel) -> None:
    executors = replicas(stage, kernel)
    script = {"id": "r", "tokens": TOKENS, "delay": 0.01, "seeded": True}
    chunks: list[ChatCompletionChunk] = []
    with OpenAI(base_url=kernel.url + "/v1", api_key="sk-none-needed", max_retries=0, timeout=30) as sdk:
        stream = sdk.chat.completions.create(
            model="oracle",
            messages=[{"role": "user", "content": "go"}],
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"oracle": script},
        )
        for chunk in stream:
            ChatCompletionChunk.model_validate(chunk.model_dump(exclude_unset=True), strict=True)
            assert not chunk.model_extra
            chunks.append(chunk)
            if len(chunks) == 7:
                who_runs_it(kernel, executors).process.kill()
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert [token.partition("~")[0] for token in text.split()] == [f"r.{number}" for number in range(TOKENS)]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert [choice.delta.role for chunk in chunks for choice in chunk.choices if choice.delta.role] == ["assistant"]
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [TOKENS]
    assert kernel.metric("kuwa_resumes_total", outcome="resumed") == 1
