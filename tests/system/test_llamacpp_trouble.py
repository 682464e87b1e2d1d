"""Requests that a client got wrong, or made to do harm, and what they cost everybody else: nothing.

A real kernel and real engines. What is malformed is refused with its field; no replica is held to blame, none is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
import pytest

from calls import Answer, chat, post_json, stream_chat
from kuwa.builtin.llamacpp.maker import make_tiny, make_welcome
from processes import Executor, Kernel, Stage, until

pytestmark = pytest.mark.timeout(180)

BAD_BODIES = 1_000
CLIENTS = 8
PROMPTLY_S = 5.0
HI = {"role": "user", "content": "hi"}
BIG = {"type": "string", "pattern": "^" + "(" * 4_000 + "k" + ")" * 4_000 + "$"}


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "find_book", **function}}


def replay(*calls: Any) -> dict[str, Any]:
    """The second turn of a tool loop."""
    turn = {"role": "assistant", "content": None, "tool_calls": list(calls)}
    return {"messages": [HI, turn, {"role": "tool", "tool_call_id": "c", "content": "none"}]}


def call(arguments: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "find_book", "arguments": arguments}, **fields}


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "book", "schema": value}}}


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{}]}, "tools[0].function"),
    ({"tools": [tool(), tool(name=["find"])]}, "tools[1].function.name"),
    ({"tools": [{"type": "custom", "custom": {"name": "sh"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "name": "flat"}]}, "tools[0].function"),
    ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
    (replay("find_book"), "messages[1].tool_calls[0]"),
    (replay({"id": "c", "type": "function"}), "messages[1].tool_calls[0].function"),
    (replay(call('{"title": "The Na')), "messages[1].tool_calls[0].function.arguments"),
    (replay(call("The Name of the Rose")), "messages[1].tool_calls[0].function.arguments"),
    ({"messages": [{**HI, "name": 12}]}, "messages[0].name"),
    ({"reasoning_format": "aloud"}, "reasoning_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "csv"}}, "response_format"),
    ({"functions": [{"name": "find_book"}]}, "functions"),
    ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
]
UNKNOWN_TO_US: list[dict[str, Any]] = [
    schema({"type": "tome"}),
    schema({"$ref": "#/$defs/nowhere"}),
    {"tools": [tool(parameters={"properties": {"title": 3}})]},
    {"grammar": "root ::= nowhere"},
]
"""Only llama.cpp itself finds out."""
BOMBS: list[tuple[dict[str, Any], str]] = [
    ({"grammar": "root ::= " + "(" * 60_000 + '"k"' + ")" * 60_000}, "grammar"),
    ({"grammar": "root ::= " + "".join(f"r{n}\nr{n} ::= " for n in range(9_000)) + '"k"'}, "grammar"),
    ({"grammar": "root ::= " + '"k"? ' * 900}, "grammar"),
    ({"grammar": 'root ::= "k"{6,4}'}, "grammar"),
    (schema({"enum": [f"title {n}" for n in range(9_000)]}), "response_format"),
    (schema({"type": "array", "items": {"enum": ["k"]}, "minItems": 7, "maxItems": 4}), "response_format"),
    (schema({"type": "string", "pattern": "^k{8,1}$"}), "response_format"),
    (schema({"type": "integer", "minimum": 8 * 10**17}), "response_format"),
    ({"tools": [tool(parameters=BIG)]}, "tools"),
    ({"json_schema": BIG}, "json_schema"),
    ({"logit_bias": {str(token): 1 for token in range(60_000)}}, "logit_bias"),
    ({"messages": [{"role": "user", "content": "3141592653" * 400_000}]}, "messages"),
]


def asked(url: str, fields: dict[str, Any]) -> Answer:
    return post_json(url + "/v1/chat/completions", {"model": "m", "messages": [HI], "max_tokens": 4, **fields})


def engine_of(executor: Executor) -> psutil.Process:
    (child,) = psutil.Process(executor.process.pid).children()
    return child


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_welcome(folder / "welcome.gguf")
    make_tiny(folder / "tiny.gguf")
    return folder


@pytest.fixture(scope="module")
def two(shared_stage: Stage, models: Path) -> Iterator[tuple[Kernel, list[Executor]]]:
    kernel = shared_stage.kernel()
    flags = ("--model_path", str(models / "welcome.gguf"), "--context_window", "2048", "--threads", "1")
    executors = [shared_stage.executor("llamacpp", *flags, kernel=kernel, access_code="m") for _ in range(2)]
    engines = [engine_of(executor).pid for executor in executors]
    yield kernel, executors
    assert [engine_of(executor).pid for executor in executors] == engines, "an engine died"


def test_a_thousand_bad_bodies_of_one_client_eject_no_replica(two: tuple[Kernel, list[Executor]]) -> None:
    kernel, executors = two
    bodies = list(islice(cycle([fields for fields, _ in MALFORMED] + UNKNOWN_TO_US), BAD_BODIES))
    with ThreadPoolExecutor(CLIENTS) as pool:
        statuses = {answer.status for answer in pool.map(lambda fields: asked(kernel.url, fields), bodies)}
    assert statuses == {400}
    assert kernel.ready("m", replicas=2)
    assert "ejected" not in kernel.process.log
    assert all(asked(executor.url, {}).status == 200 for executor in executors)


@pytest.mark.parametrize(("fields", "param"), MALFORMED, ids=[param for _, param in MALFORMED])
def test_what_is_malformed_is_refused_with_its_field(
    two: tuple[Kernel, list[Executor]], fields: dict[str, Any], param: str
) -> None:
    answer = asked(two[0].url, fields)
    assert (answer.status, answer.error["type"], answer.error["param"]) == (400, "invalid_request_error", param)


@pytest.mark.parametrize(
    "fields",
    [
        replay(call("")),
        replay(call(None, type=None)),
        replay(call({"title": "Ronia"})),
        {"tools": [tool(description=None, parameters=None, strict=None)]},
        {"tools": [{"function": {"name": "find_book"}}]},
        {"messages": [{**HI, "name": None, "tool_calls": None, "reasoning_content": None}]},
        {"stop": ""},
        {"max_tokens": 2**33},
        {"repeat_last_n": 2**31 - 1, "dry_penalty_last_n": 2**31 - 1, "dry_multiplier": 0.5},
        {"top_k": 2**40, "min_keep": 2**40},
    ],
)
def test_what_can_be_understood_is_answered(two: tuple[Kernel, list[Executor]], fields: dict[str, Any]) -> None:
    answer = asked(two[0].url, fields)
    assert answer.status == 200, answer
    assert answer.json()["choices"][0]["message"]["content"]


def test_bombs_are_refused_while_the_requests_of_others_go_on(two: tuple[Kernel, list[Executor]]) -> None:
    kernel, executors = two
    with stream_chat(kernel.url, "m", "hi", max_tokens=1_500, ignore_eos=True) as stream:
        before = stream.first_text()
        for fields, param in BOMBS:
            answer = asked(kernel.url, fields)
            assert (answer.status, answer.error["param"]) == (400, param), answer
            assert chat(kernel.url, "m", "hi", max_tokens=2).status == 200
        assert before + stream.text()
    most = max(engine_of(executor).memory_info().rss for executor in executors)
    assert most < 1_000_000_000
    assert kernel.ready("m", replicas=2)


def test_several_tools_with_definitions_of_their_own_are_enforced(stage: Stage, models: Path) -> None:
    executor = stage.executor(
        "llamacpp", "--model_path", str(models / "tiny.gguf"), kernel=None, access_code="m", KUWA_LOG="info"
    )
    shelves = [tool(name=name, parameters=on_shelf(name)) for name in ("left", "right")]
    answer = asked(executor.url, {"tools": shelves, "tool_choice": "required", "max_tokens": 900, "seed": 5})
    assert answer.status == 200, answer
    (made,) = answer.json()["choices"][0]["message"]["tool_calls"]
    assert made["function"]["name"] in made["function"]["arguments"]


def on_shelf(name: str) -> dict[str, Any]:
    return {
        "$defs": {"Shelf": {"const": name}},
        "type": "object",
        "properties": {"shelf": {"$ref": "#/$defs/Shelf"}},
        "required": ["shelf"],
        "additionalProperties": False,
    }


def test_texts_up_to_the_context_become_vectors_and_longer_ones_are_refused(stage: Stage, models: Path) -> None:
    executor = stage.executor(
        *("llamacpp", "--model_path", str(models / "tiny.gguf"), "--pooling", "mean", "--context_window", "1536"),
        kernel=None,
        access_code="m",
    )

    def embedded(tokens: int) -> Answer:
        return post_json(executor.url + "/v1/embeddings", {"model": "m", "input": [[70] * tokens]})

    for tokens in (700, 1_500):
        answer = embedded(tokens)
        assert answer.status == 200, answer
        assert answer.json()["usage"]["prompt_tokens"] == tokens
    for tokens in (1_700, 9_000):
        assert (embedded(tokens).status, embedded(tokens).code) == (400, "context_length_exceeded")


def test_what_is_kept_of_conversations_is_their_owners_alone(stage: Stage, models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o777)
    executor = stage.executor(
        *("llamacpp", "--model_path", str(models / "tiny.gguf"), "--prompt_cache", str(folder)),
        kernel=None,
        access_code="m",
    )
    assert asked(executor.url, {}).status == 200
    assert executor.process.stop() == 0
    files = until(lambda: list(folder.iterdir()), "conversations were kept")
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
