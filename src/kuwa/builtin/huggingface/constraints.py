"""Answers that keep to a form: JSON, a JSON schema, a grammar, a regular expression, tool calls that have to come.

`form_of` reads what a request asks for (pure); `Grammars` makes of it the object that the engine asks before each
token which ones are allowed (`kuwa.engine.request.Constraint`). llguidance computes that; it is imported when the
first such request comes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kuwa.builtin.huggingface.parts import CALL, THINK
from kuwa.executor.forms import check_length, check_schema
from kuwa.executor.request import Request
from kuwa.wire.errors import InvalidRequest, Unsupported
from kuwa.wire.json import Fields, fields_in

if TYPE_CHECKING:
    from torch import Tensor

MOST_CALLS = 16
"""Calls of one answer where calls are enforced: a model that cannot stop is stopped."""
TAIL_TOKENS = 16
"""How many tokens the tag that ends the reasoning may be spread over."""
BLANKS = r"( |\n[ \t]{0,64})?"
"""What may stand between the parts of JSON: any more, and a model may write nothing but blanks."""
TAIL = "}\n"

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer has to keep to. `param`: the field of the request that says so."""

    kind: Literal["json", "grammar", "regex", "calls"]
    value: Any
    param: str


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of one of `tools` each, at least one, at most `most`."""

    tools: tuple[Fields, ...]
    most: int


def form_of(request: Request, options: Mapping[str, Any]) -> Form | None:
    """The form that a request wants its answer in; `options` are its generation options. Raises InvalidRequest."""
    asked = [form for form in (_calls_of(request), _format_of(request)) if form is not None]
    kinds: dict[str, Literal["json", "grammar", "regex"]] = {
        "json_schema": "json",
        "grammar": "grammar",
        "regex": "regex",
    }
    asked += [Form(kind, options[name], name) for name, kind in kinds.items() if options.get(name)]
    # What the request itself says stands before the options that the executor was started with.
    own = [form for form in asked if form.param in request.parameters or form.param not in kinds]
    if len(own) > 1:
        names = " and ".join(form.param for form in own)
        raise InvalidRequest(f"{names} each say how to answer; give one of them.", param=own[1].param)
    return next(iter(own or asked), None)


def _format_of(request: Request) -> Form | None:
    given = request.response_format
    kind = (given or {}).get("type", "text")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return Form("json", {"type": "object"}, "response_format")
    if kind != "json_schema":
        raise InvalidRequest(
            f"response_format has the type {kind!r}; it is text, json_object or json_schema.", param="response_format"
        )
    schema = fields_in(given.get("json_schema")).get("schema")
    if not isinstance(schema, dict):
        raise InvalidRequest(
            'response_format.json_schema must hold the schema: {"name": …, "schema": {…}}.', param="response_format"
        )
    return Form("json", schema, "response_format")


def _calls_of(request: Request) -> Form | None:
    choice, tools = request.tool_choice, request.tools
    if choice in (None, "auto", "none"):
        return None
    if isinstance(choice, dict):
        name = fields_in(choice.get("function")).get("name")
        named = tuple(tool for tool in tools if name_of(tool) == name)
        if not named:
            raise InvalidRequest(f"tool_choice names {name!r}, which is none of the tools.", param="tool_choice")
        return Form("calls", Calls(named[:1], 1), "tool_choice")
    if choice != "required":
        raise InvalidRequest(
            f"tool_choice is {choice!r}; it is auto, none, required, or names a function.", param="tool_choice"
        )
    if not tools:
        raise InvalidRequest("tool_choice is required, but there are no tools.", param="tool_choice")
    several = request.body.get("parallel_tool_calls") is not False
    return Form("calls", Calls(tuple(tools), MOST_CALLS if several else 1), "tool_choice")


def name_of(tool: Fields) -> str:
    return str(fields_in(tool.get("function")).get("name") or "")


def lark_of_calls(calls: Calls, tag: Callable[[str], str]) -> str:
    """The grammar of calls as `parts` reads them. `tag` gives a tag as the grammar has to write it."""
    lines = [f'start: call ("\\n" call){{0,{calls.most - 1}}}' if calls.most > 1 else "start: call"]
    lines.append("call: " + " | ".join(f"call_{number}" for number in range(len(calls.tools))))
    for number, tool in enumerate(calls.tools):
        head = "\n" + json.dumps({"name": name_of(tool)}, ensure_ascii=False)[:-1] + ', "arguments": '
        between = f"{_literal(head)} arguments_{number} {_literal(TAIL)}"
        lines.append(f"call_{number}: {tag(CALL[0])} {between} {tag(CALL[1])}")
        schema = fields_in(tool.get("function")).get("parameters") or {"type": "object", "additionalProperties": False}
        lines.append(f"arguments_{number}: %json {json.dumps(_with_blanks(_checked_schema(schema, 'tools')))}")
    return "\n".join(lines) + "\n"


class Grammars:
    """The forms for one model. `vocabulary`: how many tokens it knows; `stops`: those that end an answer."""

    def __init__(self, tokenizer: Any, decode: Decode, *, vocabulary: int, stops: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._decode = decode
        self._vocabulary = vocabulary
        self._stops = sorted(stops)
        self._lock = threading.Lock()
        self._made: Any = None

    def constraint(self, form: Form, *, thinks: bool) -> GrammarConstraint:
        """For one answer; with `thinks` it begins behind the reasoning. Takes up to a second: call it in a thread.

        Raises InvalidRequest for a form that cannot be read or kept to, Unsupported where the model's tokenizer
        tells too little about its tokens.
        """
        from llguidance import LLMatcher, LLParserLimits

        tokenizer = self._tokens()
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(tokenizer, self._compiled(form), log_level=0, limits=limits)
        made = GrammarConstraint(matcher, tokenizer, self._stops, self._decode if thinks else None)
        if made.fault:
            raise _bad(form, made.fault)
        return made

    def _compiled(self, form: Form) -> str:
        from llguidance import LLMatcher, grammar_from

        if form.kind == "calls":
            return LLMatcher.grammar_from_lark(lark_of_calls(form.value, self._tag))
        if form.kind == "json":
            return grammar_from("json_schema", json.dumps(_with_blanks(_checked_schema(form.value, form.param))))
        text = str(form.value)
        check_length(text, form.param, f"the {form.kind}")
        try:
            return grammar_from(form.kind, text)
        except ValueError as error:
            raise _bad(form, str(error)) from error

    def _tag(self, tag: str) -> str:
        token = self._tokenizer.convert_tokens_to_ids(tag)
        own = isinstance(token, int) and self._tokenizer.convert_ids_to_tokens(token) == tag
        return f"<[{token}]>" if own and self._tokens().is_special_token(token) else _literal(tag)

    def _tokens(self) -> Any:
        """The tokenizer as llguidance wants it, made once: that takes a second for a large vocabulary."""
        with self._lock:
            if self._made is None:
                from llguidance.hf import from_tokenizer

                try:
                    size = max(self._vocabulary, len(self._tokenizer))
                    self._made = from_tokenizer(self._tokenizer, n_vocab=size, eos_token=self._stops or None)
                except ValueError as error:
                    raise Unsupported(
                        f"This model's tokenizer cannot be used for answers in a given form: {error}.",
                        param="response_format",
                    ) from error
        return self._made


class GrammarConstraint:
    """Which tokens one answer may go on with. `fault`: why it can no longer be kept to its form; empty while it can."""

    def __init__(self, matcher: Any, tokenizer: Any, stops: Sequence[int], reads_reasoning: Decode | None) -> None:
        self.fault = ""
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._stops = stops
        self._decode = reads_reasoning
        self._reasoned: list[int] = []
        self._words = (tokenizer.vocab_size + 31) // 32
        # The first mask takes longest, seconds for some grammars: no other request shall wait for it.
        self._first: bytes | None = matcher.compute_bitmask()
        self._look()

    def allowed(self) -> Tensor:
        import torch

        if self._decode is not None:
            return self._mask(but=self._stops)
        if self.ended():
            return ~self._mask(but=self._stops)
        mask, self._first = self._first or self._matcher.compute_bitmask(), None
        self._look()
        return torch.frombuffer(bytearray(mask), dtype=torch.int32) if not self.fault else ~self._mask(but=self._stops)

    def accept(self, token: int) -> None:
        if self._decode is None:
            self._first = None
        if self._decode is not None:
            self._reason(token)
        elif not self.ended():
            self._matcher.consume_token(token)
            self._look()

    def ended(self) -> bool:
        return bool(self.fault) or (self._decode is None and self._matcher.is_stopped())

    def _reason(self, token: int) -> None:
        """The form begins behind the tag that ends the reasoning."""
        assert self._decode is not None  # noqa: S101 - the caller looks
        self._reasoned = [*self._reasoned[1 - TAIL_TOKENS :], token]
        _, tag, rest = self._decode(self._reasoned).partition(THINK[1])
        if tag:
            self._decode = None
            if rest.strip():
                self._first = None
                self._matcher.consume_tokens(self._tokenizer.tokenize_str(rest.lstrip()))
                self._look()

    def _look(self) -> None:
        if self._matcher.is_error():
            self.fault = _one_line(self._matcher.get_error())

    def _mask(self, but: Sequence[int]) -> Tensor:
        """All tokens but a few."""
        import torch

        words = torch.full((self._words,), -1, dtype=torch.int32)
        for token in but:
            bit = 1 << token % 32
            words[token // 32] &= ~(bit - (1 << 32) if bit >> 31 else bit)
        return words


def _checked_schema(schema: Any, param: str) -> Fields:
    check_schema(schema, param)
    return schema


def _with_blanks(schema: Fields) -> Fields:
    # Clients do not set options of the library.
    return {**schema, "x-guidance": {"whitespace_pattern": BLANKS}}


def _bad(form: Form, why: str) -> InvalidRequest:
    return InvalidRequest(f"{form.param} cannot be kept to: {_one_line(why)}", param=form.param)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:400]


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
