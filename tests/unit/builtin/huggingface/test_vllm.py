"""What vLLM is told, of its command line and of each request; and what is made of its refusals."""

from __future__ import annotations

from typing import Any

import pytest

from kuwa.builtin.huggingface import HuggingfaceExecutor
from kuwa.builtin.huggingface.vllm import (
    arguments,
    body_of,
    environment,
    find_vllm,
    refusal,
    with_data,
    without_oldest,
)
from kuwa.executor import Request, SetupFailed
from kuwa.executor.invocation import Invocation, invoked
from kuwa.wire.errors import (
    BadUpstream,
    ContextLengthExceeded,
    EngineLost,
    InvalidRequest,
    QueueFull,
    Unsupported,
)


def args(*given: str) -> Any:
    with invoked(Invocation("kuwa-executor huggingface", ("--model_path", "o/m", *given), {}, "huggingface")):
        return HuggingfaceExecutor().args


def test_the_plain_command_line() -> None:
    assert arguments(args(), 16, "") == [
        *("serve", "o/m", "--served-model-name", "model", "--max-num-seqs", "16", "--dtype", "auto")
    ]


def test_every_option_that_vllm_has_is_handed_on() -> None:
    given = args(
        *("--visible_gpu", "2,3", "--dtype", "bfloat16", "--revision", "v1", "--tokenizer", "o/t", "--load_4bits"),
        *("--max_batch_tokens", "2048", "--kv_cache_gb", "1.5", "--trust_remote_code", "--lora", "o/l"),
    )
    found = " ".join(arguments(given, 4, "{{ x }}"))
    for part in (
        *("--max-num-seqs 4", "--dtype bfloat16", "--revision v1", "--tokenizer o/t", "--quantization bitsandbytes"),
        *("--max-num-batched-tokens 2048", "--kv-cache-memory-bytes 1610612736", "--trust-remote-code"),
        *("--tensor-parallel-size 2", "--chat-template {{ x }}", "--enable-lora --lora-modules model-lora=o/l"),
    ):
        assert part in found


def test_the_key_stands_in_the_environment_and_not_on_the_command_line() -> None:
    found = environment(args("--visible_gpu", "1", "--offline"), "secret")
    assert found["VLLM_API_KEY"] == "secret"
    assert (found["CUDA_VISIBLE_DEVICES"], found["HF_HUB_OFFLINE"]) == ("1", "1")
    assert "CUDA_VISIBLE_DEVICES" not in environment(args(), "secret")


def test_eight_bits_are_refused() -> None:
    with pytest.raises(SetupFailed, match="8 bits"):
        arguments(args("--load_8bits"), 1, "")


def test_a_missing_vllm_names_the_line_that_installs_it() -> None:
    with pytest.raises(SetupFailed, match="pip install vllm"):
        find_vllm({"PATH": "/nowhere"})


def request(**fields: Any) -> Request:
    parameters = {name: value for name, value in fields.items() if name != "messages"}
    return Request(id="r", access_code="m", parameters=parameters, body=fields)


def test_only_known_fields_are_passed_on() -> None:
    asked = request(logprobs=True, tools=[{}], lora="x", kuwa={}, temperature=0.3, max_tokens=4, guided_regex="x")
    options = {"do_sample": True, "temperature": 0.3, "max_new_tokens": 4, "top_k": 2, "seed": None}
    assert body_of(asked, options, [{"role": "user", "content": "hi"}], "model") == {
        "logprobs": True,
        "tools": [{}],
        "temperature": 0.3,
        "max_tokens": 4,
        "top_k": 2,
        "model": "model",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "hi"}],
    }


def test_without_drawing_the_likeliest_is_taken() -> None:
    assert body_of(request(), {"do_sample": False, "max_new_tokens": 9}, [], "model")["temperature"] == 0.0
    with pytest.raises(Unsupported):
        body_of(request(), {"do_sample": False, "max_new_tokens": 9, "typical_p": 0.5}, [], "model")


def test_the_form_of_an_answer_is_handed_on() -> None:
    options = {"do_sample": False, "max_new_tokens": 9, "json_schema": {"type": "object"}}
    assert body_of(request(), options, [], "model")["structured_outputs"] == {"json": {"type": "object"}}


def test_images_travel_inside_the_request() -> None:
    image = {"type": "image_url", "image_url": {"url": "http://example.org/a.png"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "see"}, image]}]
    (message,) = with_data(messages, [b"abc"])
    assert message["content"][1]["image_url"]["url"] == "data:image/png;base64,YWJj"


def test_the_oldest_turn_is_left_out_with_its_answer() -> None:
    system, one, two = ({"role": role, "content": role} for role in ("system", "user", "assistant"))
    last = {"role": "user", "content": "last"}
    assert without_oldest([system, one, two, last]) == [system, last]
    assert without_oldest([system, last]) is None


@pytest.mark.parametrize(
    ("status", "said", "error"),
    [
        (400, "This model's maximum context length is 64 tokens", ContextLengthExceeded),
        (400, "bad temperature", InvalidRequest),
        (429, "slow down", QueueFull),
        (503, "loading", EngineLost),
        (500, "boom", BadUpstream),
    ],
)
def test_refusals_are_ours_whichever_shape_they_have(status: int, said: str, error: type[Exception]) -> None:
    for body in (b'{"error": {"message": "%b", "code": 4}}', b'{"object": "error", "message": "%b"}'):
        assert type(refusal(status, body % said.encode())) is error
    assert isinstance(refusal(500, b"<html>"), BadUpstream)
