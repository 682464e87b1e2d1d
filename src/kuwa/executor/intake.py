"""Request bodies become `Request`s here, validated once: the OpenAI dialect and the v1.0 form. Used by `server`.

Fields that nobody knows are left alone. What an executor has not declared that it can do is refused here, so that
no answer silently leaves out what was asked for. Tools, and calls in the history, that no model could read are refused
too, unless the executor passes the body on to a server that judges them itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from kuwa.executor.modelfile import Modelfile
from kuwa.executor.prompt import apply_modelfile
from kuwa.executor.request import EmbedRequest, Kind, Request, RerankRequest
from kuwa.executor.tools import checked_calls, checked_tools, without_nulls
from kuwa.wire import json
from kuwa.wire.errors import InvalidRequest, ModelNotFound, Unsupported
from kuwa.wire.form import parse_history
from kuwa.wire.resume import ResumeRequest

Body = dict[str, Any]

# Fields of a body that are no generation options; everything else of it is handed on as one.
_STRUCTURE = frozenset(
    (
        *("model", "messages", "prompt", "suffix", "echo", "best_of", "stream", "stream_options", "user"),
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format"),
        *("metadata", "store", "modalities", "audio", "prediction", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "max_completion_tokens", "kuwa", "kuwa_resume"),
    )
)
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TEXT_FIELDS = ("name", "tool_call_id", "reasoning_content")
_PART_NEEDS = {"image_url": "images", "input_audio": "audio", "file": "files", "video_url": "videos"}

Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1)]


class _StreamOptions(Struct):
    include_usage: bool | None = None


class _Extension(Struct):
    """What our kernel adds to a body for a request that came over the v1.0 wire."""

    form: dict[str, str] = {}
    trim_history: bool = False
    language: str = ""


_NO_EXTENSION = _Extension()


class _Sampling(Struct):
    """The fields that both routes share."""

    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: str | list[str] | None = None
    max_tokens: Count | None = None
    seed: int | None = None
    logit_bias: dict[str, float] | None = None
    kuwa: _Extension | None = None
    kuwa_resume: ResumeRequest | None = None


class _ChatBody(_Sampling, kw_only=True):
    messages: Annotated[list[Body], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Body] | None = None
    tool_choice: str | Body | None = None
    response_format: Body | None = None


class _CompletionBody(_Sampling, kw_only=True):
    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    suffix: str | None = None
    echo: bool | None = None


class _EmbedBody(Struct, kw_only=True):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None


class _Document(Struct):
    text: str


class _RerankBody(Struct, kw_only=True):
    model: str
    query: str
    documents: Annotated[list[str | _Document], Meta(min_length=1)]
    top_n: Count | None = None
    return_documents: bool | None = None


class Intake:
    """Reads requests for one executor: the access codes it serves and what it can do.

    `passes_on`: its bodies go to another server, which judges their tools and calls.
    """

    def __init__(
        self,
        access_codes: Sequence[str],
        capabilities: Collection[str],
        *,
        trim_history: bool,
        passes_on: bool = False,
    ) -> None:
        self._codes = tuple(access_codes)
        self._capabilities = frozenset(capabilities)
        self._trim = trim_history
        self._passes_on = passes_on

    def chat(self, request_id: str, data: bytes) -> Request:
        """Read the body of `/v1/chat/completions`. Raises InvalidRequest, Unsupported, ModelNotFound."""
        body = _decode(data)
        fields = _convert(body, _ChatBody)
        self._check_model(fields.model)
        _check_stream_options(fields)
        messages = [self._message(message, index) for index, message in enumerate(fields.messages)]
        choice = fields.tool_choice
        tools = [] if choice == "none" else fields.tools or []
        self._need("tools", bool(tools), "call tools", "tools")
        if not self._passes_on:
            tools = checked_tools(tools)
            if body.get("functions"):
                raise Unsupported("functions is the older form of tools; send tools instead.", param="functions")
        wants_format = (fields.response_format or {}).get("type", "text") != "text"
        self._need("response_format", wants_format, "keep to a response format", "response_format")
        self._need("logprobs", bool(fields.logprobs), "give log probabilities", "logprobs")
        if fields.top_logprobs and not fields.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
        request = self._request(request_id, "chat", body, fields, messages)
        if fields.max_completion_tokens is not None:
            request.parameters["max_tokens"] = fields.max_completion_tokens
        request.tools = tools
        request.tool_choice = choice
        request.response_format = fields.response_format
        return request

    def completion(self, request_id: str, data: bytes) -> Request:
        """Read the body of `/v1/completions`: one prompt of text."""
        body = _decode(data)
        fields = _convert(body, _CompletionBody)
        self._check_model(fields.model)
        _check_stream_options(fields)
        prompt = fields.prompt
        if isinstance(prompt, list):
            if len(prompt) != 1 or not isinstance(prompt[0], str):
                raise Unsupported("This executor takes one prompt of text per request.", param="prompt")
            prompt = prompt[0]
        self._need("suffix", bool(fields.suffix), "fill in before a suffix", "suffix")
        self._need("echo", bool(fields.echo), "echo the prompt", "echo")
        self._need("logprobs", fields.logprobs is not None, "give log probabilities", "logprobs")
        return self._request(request_id, "completion", body, fields, [{"role": "user", "content": prompt}])

    def form(self, request_id: str, form: Mapping[str, str], language: str) -> Request:
        """Read a v1.0 form. Raises InvalidRequest for a history or Modelfile that is none."""
        history = parse_history(form.get("input", ""))
        modelfile = Modelfile.from_form(form)
        return Request(
            id=request_id,
            access_code=form.get("name") or self._codes[0],
            messages=apply_modelfile(history, modelfile),
            conversation=history,
            parameters=dict(modelfile.parameters["llm_"]),
            modelfile=modelfile,
            stream=True,
            trim_history=True,
            form=dict(form),
            language=language,
        )

    def embedding(self, request_id: str, data: bytes, key: str) -> tuple[EmbedRequest, bool]:
        """Read the body of `/v1/embeddings`, and whether vectors are to be base64."""
        body = _decode(data)
        fields = _convert(body, _EmbedBody)
        self._check_model(fields.model)
        given = fields.input
        if isinstance(given, list) and len({type(item) for item in given}) > 1:
            raise InvalidRequest("input mixes texts and token ids.", param="input")
        inputs: Any = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
        if not inputs:
            raise InvalidRequest("input holds nothing to embed.", param="input")
        request = EmbedRequest(
            id=request_id,
            access_code=fields.model,
            inputs=inputs,
            dimensions=fields.dimensions,
            body=body,
            provider_key=key,
        )
        return request, fields.encoding_format == "base64"

    def ranking(self, request_id: str, data: bytes, key: str) -> tuple[RerankRequest, bool]:
        """Read the body of `/v1/rerank`, and whether the documents are to be sent back."""
        body = _decode(data)
        fields = _convert(body, _RerankBody)
        self._check_model(fields.model)
        request = RerankRequest(
            id=request_id,
            access_code=fields.model,
            query=fields.query,
            documents=[d if isinstance(d, str) else d.text for d in fields.documents],
            top_n=min(fields.top_n or len(fields.documents), len(fields.documents)),
            body=body,
            provider_key=key,
        )
        return request, bool(fields.return_documents)

    def _request(self, request_id: str, kind: Kind, body: Body, fields: _Sampling, messages: list[Body]) -> Request:
        self._need("n", (fields.n or 1) > 1, "compute several answers at once", "n")
        extension = fields.kuwa or _NO_EXTENSION
        modelfile = Modelfile.from_form(extension.form)
        asked = {k: v for k, v in body.items() if k not in _STRUCTURE and v is not None}
        below: Body = modelfile.parameters["llm_"] if modelfile.parameters else {}
        return Request(
            id=request_id,
            access_code=fields.model,
            kind=kind,
            messages=apply_modelfile(messages, modelfile),
            conversation=messages,
            parameters={**below, **asked},
            modelfile=modelfile,
            stream=bool(fields.stream),
            trim_history=self._trim or extension.trim_history,
            body=body,
            form=extension.form,
            language=extension.language,
            resume=fields.kuwa_resume,
        )

    def _check_model(self, model: str) -> None:
        if model not in self._codes:
            raise ModelNotFound(
                f"This executor does not serve the model {model!r}; it serves {', '.join(self._codes)}.",
                param="model",
            )

    def _need(self, capability: str, wanted: bool, what: str, param: str) -> None:
        if wanted and capability not in self._capabilities:
            raise Unsupported(f"The model {self._codes[0]!r} cannot {what}.", param=param)

    def _message(self, message: Body, index: int) -> Body:
        """One message, checked: `developer` is `system`, and parts that are all text are one text."""
        where = f"messages[{index}]"
        role = message.get("role")
        if role not in _ROLES:
            raise InvalidRequest(f"{where}.role must be one of {', '.join(_ROLES)}.", param=f"{where}.role")
        content = message.get("content")
        if json.is_list(content):
            content = self._parts(content, where)
        elif content is None:
            if role != "assistant":
                raise InvalidRequest(f"{where}.content is missing.", param=f"{where}.content")
        elif not isinstance(content, str):
            raise InvalidRequest(f"{where}.content must be text or a list of parts.", param=f"{where}.content")
        if not self._passes_on:
            message = _known_fields(message, where)
        return {**message, "role": "system" if role == "developer" else role, "content": content}

    def _parts(self, parts: list[Any], where: str) -> str | list[Body]:
        texts: list[str] = []
        for index, part in enumerate(parts):
            here = f"{where}.content[{index}]"
            fields = json.fields_in(part)
            kind = fields.get("type")
            if kind in ("text", "refusal"):
                text = fields.get(kind)
                if not isinstance(text, str):
                    raise InvalidRequest(f"{here}.{kind} must be text.", param=here)
                texts.append(text)
            elif kind in _PART_NEEDS:
                self._need(_PART_NEEDS[kind], True, f"take {_PART_NEEDS[kind]}", here)
            else:
                raise InvalidRequest(f"{here} is no content part: its type is {kind!r}.", param=here)
        return "".join(texts) if len(texts) == len(parts) else parts


def stop_strings(request: Request) -> list[str]:
    """The request's stop strings, whatever wire they came by. An empty one, which every text holds, stops nothing."""
    stop = request.parameters.get("stop")
    given = [stop] if isinstance(stop, str) else json.items_in(stop)
    return [str(item) for item in given if item != ""]


def _known_fields(message: Body, where: str) -> Body:
    """A message without nulls, whose fields beside its content have the types that they must have."""
    fields = without_nulls(message)
    for name in _TEXT_FIELDS:
        if not isinstance(fields.get(name, ""), str):
            raise InvalidRequest(f"{where}.{name} must be text.", param=f"{where}.{name}")
    if "tool_calls" in fields:
        calls = checked_calls(fields.pop("tool_calls"), f"{where}.tool_calls")
        fields |= {"tool_calls": calls} if calls else {}
    return fields


def include_usage(request: Request) -> bool:
    """Whether a stream is to close with its token counts."""
    return bool(json.fields_in(request.body.get("stream_options")).get("include_usage"))


def _check_stream_options(fields: _Sampling) -> None:
    if fields.stream_options is not None and not fields.stream:
        raise InvalidRequest("stream_options is only allowed when stream is true.", param="stream_options")


def _decode(data: bytes) -> Body:
    try:
        body: object = json.decode(data)
    except json.BadJson as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}.") from error
    if not json.is_object(body):
        raise InvalidRequest("The request body must be a JSON object.")
    return body


T = TypeVar("T")


def _convert(body: Body, kind: type[T]) -> T:
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        param = path.strip("`.") or _missing(reason)
        place = f"{param}: " if path else ""
        raise InvalidRequest(f"{place}{reason}.", param=param or None) from error


def _missing(reason: str) -> str:
    """The field that msgspec's "Object missing required field `x`" names."""
    return reason.split("`")[1] if "required field" in reason else ""
