"""What llama.cpp can do, through llamacpp and the OpenAI dialect, on real GGUFs that are made on the spot.

The tiny model has random weights: what it answers is nonsense, unless something forces it into a shape. A scripted
model says exactly its script. `SCHEMAS` in the environment says on how many random schemas the shape is tried.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from calls import Answer, chat, chat_text, old_chat, post_json, stream_chat
from kuwa.builtin.llamacpp.maker import (
    TINY,
    make_adapter,
    make_ears,
    make_projector,
    make_random,
    make_scripted,
    make_tiny,
)
from processes import Executor, Kernel, Stage, metric, until

SCHEMAS = int(os.environ.get("SCHEMAS", "25"))

pytestmark = pytest.mark.timeout(120 + 2 * SCHEMAS)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 8},
                "days": {"type": "integer", "minimum": 0, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "enum": ["taipei", "utc"]}},
            "required": ["zone"],
        },
    },
}
TWO_CALLS = (
    "Let me see.\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "台北", "days": 1}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_time", "arguments": {"zone": "utc"}}\n</tool_call>'
)
THINKING_TEMPLATE = (
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor -%}{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif -%}"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny(folder / "tiny.gguf")
    make_adapter(folder / "adapter.gguf")
    make_projector(folder / "mmproj.gguf")
    return folder


def start(stage: Stage, model: Path, *flags: str, kernel: Kernel | None = None, **how: Any) -> Executor:
    return stage.executor("llamacpp", "--model_path", str(model), *flags, kernel=kernel, access_code="m", **how)


def scripted(stage: Stage, folder: Path, text: str | bytes, *flags: str) -> Executor:
    path = folder / "scripted.gguf"
    make_scripted(path, text)
    return start(stage, path, *flags)


@pytest.fixture(scope="module")
def tiny(shared_stage: Stage, models: Path) -> Executor:
    flags = ("--mmproj", str(models / "mmproj.gguf"), "--lora", f"{models / 'adapter.gguf'}=0", "--pooling", "mean")
    return start(shared_stage, models / "tiny.gguf", "--context_window", "2048", *flags)


def asked(executor: Executor, text: str = "hi", **parameters: Any) -> dict[str, Any]:
    answer = chat(executor.url, "m", text, max_tokens=600, **parameters)
    assert answer.status == 200, answer
    return answer.json()["choices"][0]


def calls_of(choice: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    calls = [call["function"] for call in choice["message"]["tool_calls"]]
    return [(call["name"], json.loads(call["arguments"])) for call in calls]


def fits_weather(arguments: dict[str, Any]) -> bool:
    return set(arguments) == {"city", "days"} and len(arguments["city"]) <= 8 and isinstance(arguments["days"], int)


# Tool calls


@pytest.mark.parametrize("seed", range(3))
def test_a_required_call_comes_from_a_model_that_would_never_make_one(tiny: Executor, seed: int) -> None:
    choice = asked(tiny, tools=[WEATHER, TIME], tool_choice="required", seed=seed)
    assert choice["finish_reason"] == "tool_calls"
    ((name, arguments),) = calls_of(choice)
    assert fits_weather(arguments) if name == "get_weather" else arguments["zone"] in ("taipei", "utc")
    assert choice["message"]["content"] is None


def test_a_named_function_is_the_one_that_is_called(tiny: Executor) -> None:
    named = {"type": "function", "function": {"name": "get_time"}}
    for seed in range(3):
        ((name, arguments),) = calls_of(asked(tiny, tools=[WEATHER, TIME], tool_choice=named, seed=seed))
        assert name == "get_time"
        assert arguments["zone"] in ("taipei", "utc")


def test_required_calls_may_be_parallel(tiny: Executor) -> None:
    some = [
        calls_of(asked(tiny, tools=[WEATHER, TIME], tool_choice="required", parallel_tool_calls=True, seed=seed))
        for seed in range(4)
    ]
    assert all(some)
    assert max(map(len, some)) > 1


def test_required_calls_are_streamed_as_deltas(tiny: Executor) -> None:
    with stream_chat(tiny.url, "m", "hi", tools=[WEATHER], tool_choice="required", max_tokens=600, seed=1) as stream:
        choices = [choice for event in stream.events() for choice in event["choices"]]
    deltas = [call for choice in choices for call in choice["delta"].get("tool_calls") or ()]
    assert deltas[0]["function"]["name"] == "get_weather"
    assert deltas[0]["id"]
    assert len(deltas) > 3
    assert fits_weather(json.loads("".join(delta["function"]["arguments"] for delta in deltas)))
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_calls_that_a_model_makes_by_itself_are_read_and_may_be_limited_to_one(stage: Stage, tmp_path: Path) -> None:
    executor = scripted(stage, tmp_path, TWO_CALLS)
    both = [("get_weather", {"city": "台北", "days": 1}), ("get_time", {"zone": "utc"})]
    choice = asked(executor, tools=[WEATHER, TIME])
    assert calls_of(choice) == both
    assert choice["message"]["content"] == "Let me see.\n"
    assert calls_of(asked(executor, tools=[WEATHER, TIME], parallel_tool_calls=False)) == both[:1]
    with stream_chat(executor.url, "m", "hi", tools=[WEATHER, TIME]) as stream:
        events = list(stream.events())
    indices = {call["index"] for e in events for c in e["choices"] for call in c["delta"].get("tool_calls") or ()}
    assert indices == {0, 1}
    none = asked(executor, tools=[WEATHER, TIME], tool_choice="none")
    assert none["message"].get("tool_calls") is None
    assert none["message"]["content"] == TWO_CALLS


@pytest.mark.parametrize("choice", [{"type": "function", "function": {"name": "nothing"}}, "always"])
def test_a_tool_choice_that_makes_no_sense_is_refused(tiny: Executor, choice: Any) -> None:
    answer = chat(tiny.url, "m", "hi", tools=[TIME], tool_choice=choice)
    assert answer.status == 400
    assert answer.error["param"] == "tool_choice"


# Answers in a shape


def test_random_json_schemas_are_kept_to(tiny: Executor) -> None:
    random = Random(3)  # noqa: S311 - no secret
    finished = 0
    for number in range(SCHEMAS):
        schema = random_schema(random)
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        answer = chat(tiny.url, "m", f"{number}", max_tokens=1500, seed=number, response_format=wanted)
        assert answer.status == 200, (schema, answer)
        choice = answer.json()["choices"][0]
        if choice["finish_reason"] == "stop":
            finished += 1
            value = json.loads(choice["message"]["content"])
            assert fits(value, schema), (schema, value)
    print(f"{finished} of {SCHEMAS} random schemas finished")  # noqa: T201
    assert finished >= 0.95 * SCHEMAS


def random_schema(random: Random, depth: int = 2) -> dict[str, Any]:
    """A schema whose texts and lists are bounded."""
    kinds = ["string", "integer", "boolean", "enum", "const", "null"] + ["object", "array"] * 2 * (depth > 0)
    match random.choice(kinds if depth < 2 else ["object", "array"]):
        case "string":
            low = random.randint(0, 2)
            return {"type": "string", "minLength": low, "maxLength": low + random.randint(0, 8)}
        case "integer":
            return {"type": "integer", "minimum": random.randint(-50, 0), "maximum": random.randint(1, 1000)}
        case "enum":
            return {"enum": random.sample(["red", "綠", 3, True, None, "blue 藍"], 3)}
        case "const":
            return {"const": random.choice(["x", 7, "固定"])}
        case "array":
            low = random.randint(0, 2)
            items = random_schema(random, depth - 1)
            return {"type": "array", "items": items, "minItems": low, "maxItems": low + random.randint(0, 3)}
        case "object":
            names = random.sample(["a", "b", "名字", "value", "with space"], random.randint(1, 3))
            return {
                "type": "object",
                "properties": {name: random_schema(random, depth - 1) for name in names},
                "required": [name for name in names if random.random() < 0.7],
                "additionalProperties": False,
            }
        case kind:
            return {"type": kind}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    if "enum" in schema:
        return any(value == each and type(value) is type(each) for each in schema["enum"])
    if "const" in schema:
        return value == schema["const"]
    match schema["type"]:
        case "string":
            return isinstance(value, str) and schema["minLength"] <= len(value) <= schema["maxLength"]
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "array":
            length = len(value) if isinstance(value, list) else -1
            return schema["minItems"] <= length <= schema["maxItems"] and all(fits(v, schema["items"]) for v in value)
        case "object":
            properties = schema["properties"]
            return set(schema["required"]) <= set(value) <= set(properties) and all(
                fits(inner, properties[name]) for name, inner in value.items()
            )
        case "boolean":
            return isinstance(value, bool)
        case _:
            return value is None


def test_a_json_object_is_one(tiny: Executor) -> None:
    choice = asked(tiny, response_format={"type": "json_object"}, seed=2, top_k=20)
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_an_answer_cut_inside_its_format_says_so_and_is_counted(tiny: Executor) -> None:
    schema = {"type": "string", "minLength": 60, "maxLength": 80}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(6):
        body = chat(tiny.url, "m", "hi", max_tokens=12, seed=seed, response_format=wanted).json()
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 12
        assert "estimated" not in body["usage"]


def test_a_grammar_is_kept_to_and_one_that_is_none_is_refused(tiny: Executor) -> None:
    assert asked(tiny, grammar='root ::= "yes" | "no"')["message"]["content"] in ("yes", "no")
    answer = chat(tiny.url, "m", "hi", grammar='root ::= "yes')
    assert answer.status == 400
    assert "grammar" in answer.error["message"]


def test_a_schema_that_is_none_is_refused(tiny: Executor) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    assert chat(tiny.url, "m", "hi", response_format=wanted).status == 400


# Sampling


def test_the_same_seed_gives_the_same_answer(tiny: Executor) -> None:
    texts = [asked(tiny, seed=seed)["message"]["content"][:40] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_log_probabilities_come_with_every_token_streamed_and_not(tiny: Executor) -> None:
    choice = chat(tiny.url, "m", "hi", max_tokens=12, logprobs=True, top_logprobs=2, seed=1).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) > 3
    assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in content)
    with stream_chat(tiny.url, "m", "hi", max_tokens=12, logprobs=True, top_logprobs=2, seed=1) as stream:
        choices = [choice for event in stream.events() for choice in event["choices"]]
    streamed = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
    assert [token["token"] for token in streamed] == [token["token"] for token in content]


def test_several_answers_come_at_once_and_are_all_counted(tiny: Executor) -> None:
    answer = chat(tiny.url, "m", "hi", max_tokens=8, n=3, seed=4, ignore_eos=True).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 24


def test_a_stop_text_ends_the_answer_wherever_tokens_are_cut(stage: Stage, tmp_path: Path) -> None:
    executor = scripted(stage, tmp_path, "one two three four")
    assert asked(executor, stop=["wo th"])["message"]["content"] == "one t"
    assert asked(executor, stop=["nothing", "four"])["message"]["content"] == "one two three "


# Reasoning, continuing, filling in


def test_reasoning_is_told_apart_from_the_answer(stage: Stage, tmp_path: Path) -> None:
    script = "<think>\nI wonder.\n</think>\n\nThe answer is 42."
    executor = scripted(stage, tmp_path, script, "--override_chat_template", THINKING_TEMPLATE)
    message = asked(executor)["message"]
    assert message["content"] == "The answer is 42."
    assert message["reasoning_content"].strip() == "I wonder."
    with stream_chat(executor.url, "m", "hi") as stream:
        deltas = [choice["delta"] for event in stream.events() for choice in event["choices"]]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas).strip() == "I wonder."
    raw = asked(executor, reasoning_format="none")["message"]
    assert raw["content"] == script


def test_a_partial_answer_is_gone_on_with(tiny: Executor) -> None:
    """Seen by its length: the prompt ends inside the assistant's turn, without the three tokens that end one."""
    turns = [{"role": "user", "content": "÷"}, {"role": "assistant", "content": "÷÷"}]
    partial = post_json(tiny.url + "/v1/chat/completions", {"model": "m", "messages": turns, "max_tokens": 1}).json()
    closed = [*turns, {"role": "user", "content": "÷"}]
    whole = post_json(tiny.url + "/v1/chat/completions", {"model": "m", "messages": closed, "max_tokens": 1}).json()
    assert partial["usage"]["prompt_tokens"] < whole["usage"]["prompt_tokens"] - 10


def test_a_gap_is_filled_in(tiny: Executor) -> None:
    asked_for = {"model": "m", "prompt": "def add(", "suffix": "return x + y", "max_tokens": 6, "seed": 1}
    answer = post_json(tiny.url + "/v1/completions", asked_for)
    assert answer.status == 200, answer
    body = answer.json()
    assert body["choices"][0]["finish_reason"] in ("length", "stop")
    assert 0 < body["usage"]["completion_tokens"] <= 6
    assert body["usage"]["prompt_tokens"] > 5


# Where the engine is wrong

BROKEN = b"one \xff two \xe4\xbd three \xf0\x9f\x98 four \x80\x80 five \xe4\xbd\xa0\xe5\xa5\xbd end"


def test_nothing_is_lost_behind_bytes_that_are_no_utf_8(stage: Stage, kernel: Kernel, tmp_path: Path) -> None:
    make_scripted(tmp_path / "broken.gguf", BROKEN)
    start(stage, tmp_path / "broken.gguf", kernel=kernel)
    wanted = BROKEN.decode("utf-8", "replace")
    assert words(chat_text(kernel.url, "m", "hi")) == words(wanted)
    with stream_chat(kernel.url, "m", "hi") as stream:
        streamed = stream.text()
    assert words(streamed) == words(wanted)
    assert "\ufffd" in streamed
    with old_chat(kernel.url, "m", "hi") as stream:
        assert words(stream.read().decode()) == words(wanted)


def words(text: str) -> list[str]:
    """The words between the marks for what was no text; llama.cpp may set one for a byte or for a few."""
    return text.replace("\ufffd", " ").split()


def test_an_image_is_refused_by_a_model_without_eyes(stage: Stage, models: Path) -> None:
    executor = start(stage, models / "tiny.gguf")
    answer = ask_about(executor, png())
    assert answer.status == 400
    assert answer.error["code"] == "unsupported"


def test_a_template_that_fails_on_a_conversation_is_the_clients_error(stage: Stage, models: Path) -> None:
    template = "{% if messages|length > 1 %}{{ raise_exception('only one turn') }}{% endif %}{{ messages[0].content }}"
    executor = start(stage, models / "tiny.gguf", "--override_chat_template", template)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    answer = post_json(executor.url + "/v1/chat/completions", {"model": "m", "messages": turns, "max_tokens": 2})
    assert 400 <= answer.status < 600
    assert "only one turn" in answer.error["message"]
    assert chat(executor.url, "m", "a", max_tokens=2).status == 200


# A template of the request's own


def with_template(executor: Executor, template: str, **more: Any) -> Answer:
    modelfile = json.dumps([{"name": "template", "args": template}])
    body = {"model": "m", "messages": [{"role": "user", "content": "÷÷"}], "max_tokens": 2, **more}
    return post_json(executor.url + "/v1/chat/completions", {**body, "kuwa": {"form": {"modelfile": modelfile}}})


def test_a_modelfiles_template_makes_the_prompt(tiny: Executor) -> None:
    answer = with_template(tiny, "§{% for m in messages %}{{ m.content }}{% endfor %}§")
    assert answer.status == 200, answer
    assert answer.json()["usage"]["prompt_tokens"] == len("§÷÷§".encode())
    assert answer.json()["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "took more than"),
        ("{{ 'x' * 99999999999 }}", "more memory"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% for", "TemplateSyntaxError"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{% include '/etc/passwd' %}", "failed"),
    ],
)
def test_a_hostile_template_is_refused_and_the_next_request_works(tiny: Executor, template: str, words: str) -> None:
    answer = with_template(tiny, template)
    assert answer.status == 400, answer
    assert words in answer.error["message"]
    assert with_template(tiny, "{{ messages[0].content }}").status == 200


# Beside the model


def png(width: int = 28, height: int = 28) -> str:
    """A red picture as a data URI."""
    rows = b"".join(b"\0" + b"\xff\x20\x20" * width for _ in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def ask_about(executor: Executor, url: str) -> Answer:
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 3, "seed": 1}
    return post_json(executor.url + "/v1/chat/completions", body)


def test_a_model_with_a_projector_reads_images(tiny: Executor) -> None:
    with_image = ask_about(tiny, png())
    assert with_image.status == 200, with_image
    without = chat(tiny.url, "m", "What is it?", max_tokens=1).json()["usage"]["prompt_tokens"]
    assert with_image.json()["usage"]["prompt_tokens"] >= without + 4


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("http://127.0.0.1:9/secret.png", 400),
        ("file:///etc/passwd", 400),
        ("data:image/png;base64,@@@", 400),
        ("data:image/png;base64,QUJD", 400),
    ],
)
def test_an_image_that_lies_elsewhere_or_is_none_is_refused(tiny: Executor, url: str, status: int) -> None:
    answer = ask_about(tiny, url)
    assert answer.status == status, answer
    assert chat(tiny.url, "m", "hi", max_tokens=1).status == 200


def wav(seconds: float) -> bytes:
    """Silence, 16 bits, 16 kHz."""
    data = bytes(2 * int(16_000 * seconds))
    form = struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    return (
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + form + b"data" + struct.pack("<I", len(data)) + data
    )


def ask_about_sound(executor: Executor, sound: dict[str, str]) -> Answer:
    content = [{"type": "text", "text": "What is it?"}, {"type": "input_audio", "input_audio": sound}]
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 3, "seed": 1}
    return post_json(executor.url + "/v1/chat/completions", body)


def test_a_model_with_a_projector_for_sounds_hears_those_that_a_request_brings_along(
    stage: Stage, models: Path, tmp_path: Path
) -> None:
    make_ears(tmp_path / "ears.gguf")
    hears = start(stage, models / "tiny.gguf", "--mmproj", str(tmp_path / "ears.gguf"))
    good = base64.b64encode(wav(0.1)).decode()
    answer = ask_about_sound(hears, {"data": good, "format": "wav"})
    assert answer.status == 200, answer
    assert answer.json()["usage"]["prompt_tokens"] > 750
    for bad in ({"data": "http://127.0.0.1:9/x.wav"}, {"url": "http://127.0.0.1:9/x.wav"}, {"data": "QUJD"}):
        assert ask_about_sound(hears, {**bad, "format": "wav"}).status == 400
    assert ask_about(hears, png()).error["code"] == "unsupported"


def test_a_sound_is_refused_by_a_model_without_ears(tiny: Executor) -> None:
    answer = ask_about_sound(tiny, {"data": base64.b64encode(wav(0.1)).decode(), "format": "wav"})
    assert answer.status == 400
    assert answer.error["code"] == "unsupported"


def test_an_adapter_counts_as_much_as_the_request_says(tiny: Executor) -> None:
    def greedy(**more: Any) -> str:
        return chat_text(tiny.url, "m", "hi", max_tokens=30, temperature=0, **more)

    plain = greedy()
    assert greedy(lora=[{"id": 0, "scale": 0.0}]) == plain
    assert greedy(lora=[{"id": 0, "scale": 1.0}]) != plain
    assert greedy() == plain
    for wrong in ([{"id": 1, "scale": 1.0}], [{"id": "x"}], "0"):
        assert chat(tiny.url, "m", "hi", lora=wrong).error["param"] == "lora"


def test_texts_become_vectors(tiny: Executor) -> None:
    answer = post_json(tiny.url + "/v1/embeddings", {"model": "m", "input": ["hello there", "hello there", "否"]})
    assert answer.status == 200, answer
    first, same, other = (entry["embedding"] for entry in answer.json()["data"])
    assert len(first) == 64
    assert first == pytest.approx(same, abs=1e-5)
    assert first != pytest.approx(other, abs=1e-3)
    assert answer.json()["usage"]["prompt_tokens"] > 3
    assert post_json(tiny.url + "/v1/embeddings", {"model": "m", "input": "x", "dimensions": 8}).status == 400


def test_a_model_that_pools_for_ranking_ranks_documents(stage: Stage, models: Path) -> None:
    executor = start(stage, models / "tiny.gguf", "--pooling", "rank")
    body = {"model": "m", "query": "sea", "documents": ["ships", "mountains", "waves"], "top_n": 2}
    answer = post_json(executor.url + "/v1/rerank", body)
    assert answer.status == 200, answer
    results = answer.json()["results"]
    assert len(results) == 2
    assert results[0]["relevance_score"] >= results[1]["relevance_score"]


def test_without_pooling_embeddings_are_refused_with_what_to_do(stage: Stage, models: Path) -> None:
    executor = start(stage, models / "tiny.gguf")
    for path, body in (("embeddings", {"input": "x"}), ("rerank", {"query": "x", "documents": ["y"]})):
        answer = post_json(f"{executor.url}/v1/{path}", {"model": "m", **body})
        assert answer.status == 400
        assert "--pooling" in answer.error["message"]


def test_a_draft_model_changes_nothing_in_the_answer(stage: Stage, models: Path) -> None:
    flags = ("--draft_model", str(models / "tiny.gguf"), "--draft_max", "4")
    plain = start(stage, models / "tiny.gguf")
    drafted = start(stage, models / "tiny.gguf", *flags)
    texts = [chat_text(e.url, "m", "hi", max_tokens=60, temperature=0, ignore_eos=True) for e in (plain, drafted)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "flags",
    [
        ("--cache_type_k", "q8_0", "--cache_type_v", "q8_0", "--flash_attn", "on"),
        ("--flash_attn", "off", "--batch_size", "64", "--ubatch_size", "32"),
        ("--ngl", "auto", "--tensor_split", "1,1", "--split_mode", "none"),
    ],
    ids=["quantised cache", "small batches", "gpu options"],
)
def test_options_of_the_engine_are_taken(stage: Stage, tmp_path: Path, flags: tuple[str, ...]) -> None:
    executor = scripted(stage, tmp_path, "It works as ever.", *flags)
    assert chat_text(executor.url, "m", "hi" * 100) == "It works as ever."


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mmproj", "{tiny}"], "it holds a language model, not a projector"),
        (["--lora", "{mmproj}"], "not a LoRA adapter"),
        (["--draft_model", "{adapter}"], "not a language model"),
        (["--lora", "/nowhere.gguf=0.5"], "no file /nowhere.gguf"),
        (["--llama_server", "/nowhere"], "/nowhere is no program"),
        (["--tensor_split", "a,b"], "--tensor_split is 'a,b'"),
    ],
)
def test_a_file_or_option_that_does_not_fit_ends_the_start(
    stage: Stage, models: Path, flags: list[str], words: str
) -> None:
    names = {"tiny": models / "tiny.gguf", "mmproj": models / "mmproj.gguf", "adapter": models / "adapter.gguf"}
    given = [flag.format(**names) for flag in flags]
    executor = start(stage, models / "tiny.gguf", *given, wait=False)
    executor.process.wait()
    assert executor.process.exit_code == 4, executor.process.log
    assert words in executor.process.log


def test_what_was_read_is_kept_over_a_restart(stage: Stage, models: Path, tmp_path: Path) -> None:
    flags = ("--prompt_cache", str(tmp_path / "kept"), "--concurrency", "2")
    text = "a long question of which nothing is to be read twice " * 12
    first = start(stage, models / "tiny.gguf", *flags)
    chat(first.url, "m", text, max_tokens=1)
    assert first.process.stop() == 0
    again = start(stage, models / "tiny.gguf", *flags)
    usage = chat(again.url, "m", text, max_tokens=1).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0.9 * usage["prompt_tokens"]


def test_a_second_turn_reuses_what_the_first_one_read(stage: Stage, models: Path) -> None:
    executor = start(stage, models / "tiny.gguf", "--context_window", "2048")
    turns = [{"role": "user", "content": "kuwa " * 600}]
    url = executor.url + "/v1/chat/completions"
    first = post_json(url, {"model": "m", "messages": turns, "max_tokens": 8, "grammar": 'root ::= "okay"'}).json()
    turns += [first["choices"][0]["message"], {"role": "user", "content": "and?"}]
    usage = post_json(url, {"model": "m", "messages": turns, "max_tokens": 1}).json()["usage"]
    assert first["usage"]["prompt_tokens"] > 500
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0.95 * first["usage"]["prompt_tokens"]


def test_each_conversation_finds_its_prefix_again_with_two_replicas(stage: Stage, tmp_path: Path) -> None:
    """Some conversations of 2,000 tokens take their turns in between each other, as they do for a crowd of users."""
    make_random(tmp_path / "m.gguf", replace(TINY, context=4096))
    kernel = stage.kernel("--policy", "m=prefix")
    flags = ("--concurrency", "2", "--context_window", "4096")
    replicas = [start(stage, tmp_path / "m.gguf", *flags, kernel=kernel) for _ in range(2)]
    until(lambda: kernel.ready("m", replicas=2), "both replicas were ready")
    url = kernel.url + "/v1/chat/completions"
    system = {"role": "system", "content": "You answer briefly."}
    talks = [[system, {"role": "user", "content": f"{number} " + "kuwa " * 1000}] for number in range(8)]
    read = [0] * len(talks)
    for turn in range(3):
        for number, turns in enumerate(talks):
            answer = post_json(url, {"model": "m", "messages": turns, "max_tokens": 6, "ignore_eos": True}).json()
            usage = answer["usage"]
            assert not turn or usage["prompt_tokens_details"]["cached_tokens"] >= 0.95 * read[number], (turn, usage)
            read[number] = usage["prompt_tokens"]
            turns += [answer["choices"][0]["message"], {"role": "user", "content": f"and then {turn}?"}]
    assert min(read) > 2000, read
    answered = [metric(each.get("/metrics").text, "vllm:request_success_total") for each in replicas]
    assert all(answered), answered
