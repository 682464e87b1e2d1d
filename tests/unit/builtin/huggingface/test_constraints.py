"""Answers in a given form: whatever a model would rather say, what comes keeps to it."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from typing import Any

import pytest
import torch

from kuwa.builtin.huggingface.constraints import Form, GrammarConstraint, Grammars, form_of
from kuwa.builtin.huggingface.parts import PartReader
from kuwa.engine.probe import backend_for
from kuwa.engine.request import Constraint, Generation, Sampling
from kuwa.engine.sampler import draw
from kuwa.engine.scheduler import Scheduler
from kuwa.executor.request import Request
from kuwa.wire.errors import InvalidRequest
from tiny_models import make_model, make_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "port": {"type": "string", "maxLength": 6},
        "tide": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["ebb", "flood"]},
    },
    "required": ["port", "tide", "kind"],
    "additionalProperties": False,
}
LIST = {"type": "array", "items": {"$ref": "#/$defs/ship"}, "maxItems": 2, "$defs": {"ship": {"type": "boolean"}}}


def tool(name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("tide", SCHEMA), tool("燈塔", LIST | {"type": "object", "properties": {"on": {"$ref": "#/$defs/ship"}}})]


@cache
def tokenizer() -> Any:
    return make_tokenizer(1024)


@cache
def grammars() -> Grammars:
    made = tokenizer()
    return Grammars(made, made.decode, vocabulary=len(made), stops=[made.eos_token_id])


def form(kind: Any, value: Any) -> Form:
    return Form(kind, value, "response_format")


def written(constraint: Constraint, seed: int, most: int = 400) -> str:
    """What somebody writes who picks any allowed token."""
    chance = random.Random(seed)  # noqa: S311 - seeded, so that a failure comes again
    ids: list[int] = []
    while not constraint.ended() and len(ids) < most:
        bits = (constraint.allowed().view(-1, 1) >> torch.arange(32)) & 1
        allowed = [i for i in bits.flatten().nonzero().flatten().tolist() if i < len(tokenizer())]
        assert allowed
        token = chance.choice(allowed)
        # Who can end ends more often than not: strings would become long.
        if tokenizer().eos_token_id in allowed and chance.random() < 0.5:
            token = tokenizer().eos_token_id
        ids.append(token)
        constraint.accept(token)
        if token == tokenizer().eos_token_id:
            break
    assert constraint.fault == ""
    return str(tokenizer().decode([i for i in ids if i != tokenizer().eos_token_id]))


@pytest.mark.parametrize("seed", range(8))
def test_what_is_written_under_a_schema_keeps_to_it(seed: int) -> None:
    said = json.loads(written(grammars().constraint(form("json", SCHEMA), thinks=False), seed))
    assert list(said) == ["port", "tide", "kind"]
    assert len(said["port"]) <= 6
    assert 0 <= said["tide"] <= 99
    assert said["kind"] in ("ebb", "flood")


@pytest.mark.parametrize("seed", range(4))
def test_a_schema_may_refer_to_itself(seed: int) -> None:
    assert all(
        isinstance(one, bool)
        for one in json.loads(written(grammars().constraint(form("json", LIST), thinks=False), seed))
    )


@pytest.mark.parametrize("seed", range(4))
def test_regular_expressions_and_grammars_of_both_kinds_are_kept_to(seed: int) -> None:
    said = written(grammars().constraint(form("regex", r"[0-9]{3}-[a-f]{2,4}"), thinks=False), seed)
    assert re.fullmatch(r"[0-9]{3}-[a-f]{2,4}", said)
    for text in ('root ::= "ship" (" " [0-9]){2}', 'start: "ship" (" " /[0-9]/){2}'):
        said = written(grammars().constraint(form("grammar", text), thinks=False), seed)
        assert re.fullmatch(r"ship( [0-9]){2}", said)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "燈塔"}}])
def test_calls_that_have_to_come_are_calls_of_these_tools(choice: Any, seed: int) -> None:
    request = Request(id="r", access_code="m", tools=TOOLS, tool_choice=choice, body={"parallel_tool_calls": False})
    wanted = form_of(request, {})
    assert wanted is not None
    said = written(grammars().constraint(wanted, thinks=False), seed, 2000)
    reader = PartReader(thinks=False, calls=True)
    (call,) = [part for part in (*reader.feed(said), *reader.finish()) if part.text.strip()]
    assert call.kind == "call"
    assert call.name in (["燈塔"] if isinstance(choice, dict) else ["燈塔", "tide"])
    assert isinstance(json.loads(call.text), dict)


def test_reasoning_comes_first_and_is_free() -> None:
    constraint = grammars().constraint(form("json", {"type": "boolean"}), thinks=True)
    said = "well {{{ then</think>"
    for token in tokenizer()(said, add_special_tokens=False)["input_ids"]:
        assert not is_allowed(constraint, tokenizer().eos_token_id)
        assert is_allowed(constraint, token)
        constraint.accept(token)
    assert written(constraint, 1) in ("true", "false")


def is_allowed(constraint: GrammarConstraint, token: int) -> bool:
    return bool(int(constraint.allowed()[token // 32]) >> token % 32 & 1)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("json", {"type": "number or so"}),
        ("json", {"not": {"type": "string"}}),
        ("json", {"$ref": "http://example.org/schema"}),
        ("json", nested(500)),
        ("json", {"enum": ["x" * 1000] * 1000}),
        ("regex", "(unclosed"),
        ("regex", "x" * 10**6),
        ("grammar", "root ::= nothing"),
        ("grammar", "neither ((("),
        ("grammar", "start: " + "(" * 5000 + '"a"' + ")" * 5000),
    ],
)
def test_a_form_that_cannot_be_kept_to_is_refused_with_its_name(kind: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as raised:
        grammars().constraint(form(kind, value), thinks=False)
    assert raised.value.param == "response_format"
    assert len(raised.value.message) < 600


def test_a_constraint_that_fails_ends_its_own_answer_and_raises_nothing() -> None:
    constraint = grammars().constraint(form("json", SCHEMA), thinks=False)
    constraint.accept(tokenizer()("[", add_special_tokens=False)["input_ids"][0])
    assert constraint.fault
    assert constraint.ended()
    assert is_allowed(constraint, tokenizer().eos_token_id)


def asked(**fields: Any) -> Request:
    return Request(id="r", access_code="m", **fields)


def test_what_the_request_says_is_read() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    assert form_of(asked(), {}) is None
    assert form_of(asked(response_format={"type": "text"}, tools=TOOLS, tool_choice="auto"), {}) is None
    assert form_of(asked(response_format=schema), {}) == form("json", SCHEMA)
    assert form_of(asked(response_format={"type": "json_object"}), {}) == form("json", {"type": "object"})
    assert form_of(asked(parameters={"regex": "a"}), {"regex": "a"}) == Form("regex", "a", "regex")


def test_a_request_stands_before_the_executors_own_form() -> None:
    own = {"json_schema": SCHEMA}
    assert form_of(asked(), own) == Form("json", SCHEMA, "json_schema")
    found = form_of(asked(parameters={"grammar": "start: /a/"}), {**own, "grammar": "start: /a/"})
    assert found == Form("grammar", "start: /a/", "grammar")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes", "tools": TOOLS}, "tool_choice"),
        ({"tool_choice": {"function": {"name": "other"}}, "tools": TOOLS}, "tool_choice"),
        ({"response_format": {"type": "json_object"}, "parameters": {"regex": "a"}}, "regex"),
    ],
)
def test_what_makes_no_sense_is_one_clear_error(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        form_of(asked(**fields), fields.get("parameters", {}))
    assert raised.value.param == param


def test_forms_inside_a_batch_change_nothing_for_the_requests_beside_them() -> None:
    model = make_model("tiny-llama", tokenizer())
    backend = backend_for(model, "slot", slots=6, context=512, step_tokens=64, budget=1 << 28)
    stops = frozenset([int(tokenizer().eos_token_id)])

    def answers(with_forms: bool) -> dict[int, list[int]]:
        backend.reset()
        scheduler = Scheduler(backend.limits)
        for key in range(6):
            sampling = Sampling(temperature=1.0 if key % 3 else 0.0, seed=key)
            constraint = grammars().constraint(form("json", SCHEMA), thinks=False) if key >= 3 and with_forms else None
            prompt = [10 + key, 20, 30 + key]
            most = 200 if key >= 3 else 40
            scheduler.add(
                key, Generation(prompt=prompt, max_tokens=most, sampling=sampling, stops=stops, constraint=constraint)
            )
        found: dict[int, list[int]] = {}
        while not scheduler.idle:
            plan = scheduler.plan()
            drawn = draw(backend.compute(plan), [segment.run for segment in plan.drawing])
            for run, end in scheduler.advance(plan, [token.id for token in drawn]):
                if end is not None:
                    found[run.key] = run.ids[3:]
        return found

    free, formed = answers(False), answers(True)
    assert [free[key] for key in range(3)] == [formed[key] for key in range(3)]
    for key in range(3, 6):
        said = tokenizer().decode([token for token in formed[key] if token not in stops])
        assert set(json.loads(said)) == set(SCHEMA["required"])
