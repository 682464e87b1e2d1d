"""huggingface behind the kernel: answers in a given form, and streams that outlive the executor that began them."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from calls import Answer, chat, chat_body, post_json, stream_chat
from processes import Executor, Kernel, Stage, until
from tiny_models import make_folder

SCHEMA = {
    "type": "object",
    "properties": {"port": {"type": "string", "maxLength": 8}, "tide": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["port", "tide"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("tide", "wind")]
LONG = 400
REPLICAS = 3
START_S = 240.0  # three times torch, on two busy cores

pytestmark = pytest.mark.timeout(2 * START_S)


@pytest.fixture(scope="module")
def replicas(shared_stage: Stage, shared_kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> list[Executor]:
    folder = make_folder("tiny-llama", tmp_path_factory.mktemp("models") / "tiny-llama")
    argv = ["--model_path", str(folder), "--dtype", "float32", "--max_new_tokens", "200", "--timeout", "60"]
    started = [
        shared_stage.executor(
            # One thread: so small a model only waits for a second one.
            "huggingface",
            *argv,
            kernel=shared_kernel,
            access_code="hf",
            wait=False,
            OMP_NUM_THREADS="1",
        )
        for _ in range(REPLICAS)
    ]
    until(lambda: shared_kernel.ready("hf", REPLICAS), "the executors are ready", timeout_s=START_S)
    return started


@pytest.fixture
def url(shared_kernel: Kernel, replicas: list[Executor]) -> str:
    del replicas
    return shared_kernel.url


def asked(url: str, text: str, **fields: Any) -> dict[str, Any]:
    """The choice of an answer that keeps to the SDK's types."""
    answer: Answer = chat(url, "hf", text, **fields)
    assert answer.status == 200, answer
    ChatCompletion.model_validate_json(answer.body, strict=True)
    return answer.json()["choices"][0]


def test_json_comes_in_the_form_that_was_asked_for(url: str) -> None:
    formats = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    for seed in range(3):
        choice = asked(url, f"tide {seed}?", response_format=formats, temperature=1.0, seed=seed)
        assert choice["finish_reason"] == "stop"
        assert set(json.loads(choice["message"]["content"])) == {"port", "tide"}
    assert json.loads(asked(url, "x", json_schema=SCHEMA)["message"]["content"])
    said = asked(url, "x", regex="[a-c]{4}[0-9]", temperature=1.0)["message"]["content"]
    assert re.fullmatch("[a-c]{4}[0-9]", said)
    assert asked(url, "x", grammar='root ::= "aye" | "nay"')["message"]["content"] in ("aye", "nay")


def test_a_call_that_has_to_come_comes(url: str) -> None:
    named = {"type": "function", "function": {"name": "wind"}}
    for choice, names in (("required", {"tide", "wind"}), (named, {"wind"})):
        fields = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, "temperature": 1.0, "seed": 4}
        found = asked(url, "How high?", **fields)
        (call,) = found["message"]["tool_calls"]
        assert found["finish_reason"] == "tool_calls"
        assert call["function"]["name"] in names
        assert set(json.loads(call["function"]["arguments"])) == {"port", "tide"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}},
            "response_format",
        ),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"grammar": "root ::= other"}, "grammar"),
        ({"regex": "(("}, "regex"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "none"}}}, "tool_choice"),
    ],
)
def test_a_form_that_cannot_be_kept_to_is_one_clear_error(url: str, fields: dict[str, Any], param: str) -> None:
    answer = post_json(url + "/v1/chat/completions", chat_body("hf", "x", **fields))
    assert (answer.status, answer.error["param"]) == (400, param)


def test_a_stream_whose_executor_is_killed_goes_on_by_its_ids(shared_kernel: Kernel, replicas: list[Executor]) -> None:
    """The last test of this file: it ends executors."""
    chance = random.Random(6)  # noqa: S311 - seeded, so that a failure comes again
    alive = list(replicas)
    for number, temperature in enumerate((0.0, 1.1)):
        fields: dict[str, Any] = {"max_tokens": LONG, "temperature": temperature, "seed": number}
        expected = chat(shared_kernel.url, "hf", f"Sing {number}", **fields).json()["choices"][0]
        cut, text, seen, reasons = chance.randrange(2, 20), "", 0, []
        with stream_chat(shared_kernel.url, "hf", f"Sing {number}", **fields) as stream:
            for event in stream.events():
                assert "error" not in event, event
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
                    reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
                seen += 1
                if seen == cut:
                    dying = busy(shared_kernel, alive)
                    dying.process.kill()
                    alive.remove(dying)
        assert text == expected["message"]["content"]
        assert reasons == [expected["finish_reason"]]
    # On a starved machine an executor may have written all of its answer before it is killed.
    assert shared_kernel.metric("kuwa_resumes_total", outcome="resumed") >= 1
    assert shared_kernel.metric("kuwa_resumes_total", outcome="failed") == 0
    until(lambda: shared_kernel.idle("hf"), "the slots were freed")


def busy(kernel: Kernel, executors: list[Executor]) -> Executor:
    (endpoint,) = [r["endpoint"] for r in kernel.replicas("hf") if r["running"]]
    return next(executor for executor in executors if f":{executor.port}/" in endpoint)
