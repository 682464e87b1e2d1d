"""One request as an executor sees it, whichever wire it came by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kuwa.executor.modelfile import Modelfile
from kuwa.wire.resume import ResumeRequest

Kind = Literal["chat", "completion"]


@dataclass(slots=True, kw_only=True)
class Request:
    """What `llm_compute(self, request)` is given.

    `messages` are OpenAI messages with the Modelfile applied: a system message first if there is one, before and
    after prompts around the last user turn (for a plain completion: one user message holding the prompt).
    `conversation` is what the client sent, without the Modelfile.
    `parameters` are the generation options of this request alone, under their OpenAI names, with the Modelfile's
    `llm_*` parameters below them: `{"temperature": 0.2, "max_tokens": 64, "stop": ["\\n"]}`.
    `resume` is there where another executor began this very answer: compute it again from its start. Its `ids` (where
    not empty) are the tokens that were computed already, which may be taken as they are.
    `body` is the whole decoded OpenAI body, unknown fields included. `form` holds the fields of the v1.0 form,
    empty for a request of the OpenAI dialect.
    """

    id: str
    access_code: str
    kind: Kind = "chat"
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    conversation: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    modelfile: Modelfile = field(default_factory=Modelfile)
    tools: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    stream: bool = False
    trim_history: bool = False
    body: Mapping[str, Any] = field(default_factory=dict[str, Any])
    form: Mapping[str, str] = field(default_factory=dict[str, str])
    provider_key: str = field(default="", repr=False)
    language: str = ""
    trimmed_messages: int = 0
    resume: ResumeRequest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """What `embed` is given. `inputs` are texts, or lists of token ids where the client tokenised itself."""

    id: str
    access_code: str
    inputs: list[str] | list[list[int]]
    dimensions: int | None = None
    body: Mapping[str, Any] = field(default_factory=dict[str, Any])
    provider_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector per input, in their order."""

    vectors: list[list[float]]
    prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankRequest:
    """What `rerank` is given. `top_n` is how many documents the client wants back."""

    id: str
    access_code: str
    query: str
    documents: list[str]
    top_n: int
    body: Mapping[str, Any] = field(default_factory=dict[str, Any])
    provider_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Ranking:
    """One score per document, in the documents' order; the server sorts them and keeps `top_n`."""

    scores: list[float]
    prompt_tokens: int
