"""Makes what a model reads of the messages of a request: chat template, system prompt, images, length.

The executor makes one `Prompter` at its start and calls it in a thread: rendering and tokenizing long texts takes
time. What users write never becomes a control token of the model, whatever it looks like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kuwa.builtin.huggingface.pictures import has_images, in_parts
from kuwa.executor.prompt import SYSTEM_ROLES, Message, text_of, trim_oldest, with_system_prompt
from kuwa.executor.request import Request
from kuwa.wire.errors import ContextLengthExceeded, InvalidRequest
from kuwa.wire.json import is_object

PROBE = "kuwa-probe-7421"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For models that bring no chat template."""


class BadTemplate(Exception):
    """The chat template does not do what it is for; the message says what."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The token ids of a prompt, and what else the model's first step is given: the numbers of its images."""

    ids: list[int]
    inputs: Mapping[str, Any] | None = None


class Prompter:
    """`limit` is the most tokens of a prompt, `system_prompt` that of conversations which bring none."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str,
        system_prompt: str,
        limit: int,
        vocabulary: int,
        processor: Any | None = None,
    ) -> None:
        """`template` empty: the tokenizer's own. `processor`: that of a model that sees. Raises BadTemplate."""
        self._tokenizer = tokenizer
        self._processor = processor
        self._template = template or _own_template(processor) or _own_template(tokenizer) or CHATML
        # Most templates of models that see read nothing but parts; few read nothing but text.
        self._in_parts = processor is not None
        self._system_prompt = system_prompt
        self._limit = limit
        self._vocabulary = vocabulary
        self._folds_system = False
        self._try()

    def fitting(self, request: Request, kwargs: Mapping[str, Any]) -> Prompt:
        """A request's prompt; `request.trimmed_messages` says how many messages were left out. Its images have been
        put into their places (`pictures.placed`).

        Raises ContextLengthExceeded, and InvalidRequest where the template refuses the messages.
        """
        if request.kind == "completion":
            return self.plain(text_of(request.messages[0]))
        messages = with_system_prompt(request.messages, self._system_prompt)
        prompt = self._chat(messages, request.tools, kwargs)
        if len(prompt.ids) > self._limit and request.trim_history:
            return self._chat(self._trimmed(request, messages, kwargs), request.tools, kwargs)
        return self._within(prompt)

    def for_template(self, request: Request) -> list[Message]:
        """The messages for a template that a request brings along, with the executor's system prompt; trimmed where
        they may be. What looks like a control token in them is marked, so that `of_rendered` knows it for text.
        """
        messages = with_system_prompt(request.messages, self._system_prompt)
        if request.trim_history:
            messages = self._trimmed(request, messages, {})
        # By the model's own template, which says what else is a control token: a stranger's is not even parsed here.
        (marked,), *_ = self._tokenizer._mark_chat_inputs(self._template, [messages], None, None, {}, True, False)
        return marked

    def of_rendered(self, text: str) -> Prompt:
        """The prompt of what a template has made of `for_template`'s messages. Raises ContextLengthExceeded."""
        told = self._tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True)
        return self._within(Prompt(self._checked(list(told["input_ids"]))))

    def plain(self, text: str) -> Prompt:
        """The prompt of text that is no chat. Raises ContextLengthExceeded."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=True)["input_ids"]
        return self._within(Prompt(self._checked(ids)))

    def _within(self, prompt: Prompt) -> Prompt:
        if len(prompt.ids) > self._limit:
            raise self._too_long(f"The prompt has {len(prompt.ids)} tokens")
        return prompt

    def rendered(self, messages: Sequence[Message], tools: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """The text of a chat."""
        return str(self._apply(list(messages), tools, {**kwargs, "tokenize": False, "return_dict": False}))

    def _trimmed(self, request: Request, messages: list[Message], kwargs: Mapping[str, Any]) -> list[Message]:
        """What is left of `messages` when the oldest turns are left out until they fit."""

        def fits(candidate: list[Message]) -> bool:
            return len(self._chat(candidate, request.tools, kwargs).ids) <= self._limit

        trimmed = trim_oldest(messages, fits)
        if trimmed is None:
            raise self._too_long("The last message alone is longer")
        kept, request.trimmed_messages = trimmed
        return kept

    def _chat(self, messages: list[Message], tools: Sequence[Any], kwargs: Mapping[str, Any]) -> Prompt:
        sound = {**kwargs, "sanitize_control_tokens": True, "tokenize": True}
        if not has_images(messages):
            return Prompt(self._checked(self._apply(messages, tools, {**sound, "return_dict": False})))
        made = dict(self._apply(messages, tools, {**sound, "return_dict": True, "return_tensors": "pt"}))
        ids: list[int] = made.pop("input_ids")[0].tolist()
        made.pop("attention_mask", None)
        return Prompt(self._checked(ids), made)

    def _apply(self, messages: list[Message], tools: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The chat template at work; `kwargs` say what it is to make."""
        from jinja2 import TemplateError

        if self._folds_system:
            messages = folded(messages)
        if self._in_parts:
            messages = [in_parts(message) for message in messages]
        maker: Any = self._processor if has_images(messages) else self._tokenizer
        goes_on = bool(kwargs.get("continue_final_message"))
        try:
            return maker.apply_chat_template(
                messages,
                tools=list(tools) or None,
                chat_template=self._template,
                add_generation_prompt=not goes_on,
                **kwargs,
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            said = " ".join(str(error).split())
            raise InvalidRequest(f"The model's chat template cannot take these messages: {said}.") from error

    def _checked(self, ids: list[int]) -> list[int]:
        if not ids:
            raise InvalidRequest("The prompt is empty: there is nothing to go on from.", param="messages")
        if max(ids) >= self._vocabulary:
            raise InvalidRequest("The tokenizer makes tokens that the model does not know.")
        return ids

    def _too_long(self, fault: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"{fault}, and this model takes prompts of {self._limit} tokens. Shorten the conversation, or start the "
            "executor with a larger --limit.",
            param="messages",
        )

    def _try(self) -> None:
        """Render a message: a template that loses it would make the model answer something else."""
        user: Message = {"role": "user", "content": PROBE}
        fault = self._fault(user)
        if fault and self._in_parts:
            self._in_parts = False
            fault = self._fault(user)
        if fault:
            raise BadTemplate(fault)
        self._folds_system = bool(self._fault({"role": "system", "content": PROBE}, {**user, "content": "x"}))

    def _fault(self, *messages: Message) -> str:
        """Why the template does not keep the probe in `messages`; empty where it does."""
        try:
            text = self.rendered(messages, [], {})
        except InvalidRequest as error:
            return f"the chat template does not work: {error.message}"
        return "" if PROBE in text else "the chat template leaves out what the user says"


def _own_template(tokenizer: Any) -> str:
    """The template of a tokenizer or processor; of several named ones the default."""
    own: Any = getattr(tokenizer, "chat_template", None)
    return (own.get("default") if is_object(own) else own) or ""


def folded(messages: Sequence[Message]) -> list[Message]:
    """Messages without a system role, for templates that know none: its text leads the first user turn."""
    system = "\n\n".join(text_of(m) for m in messages if m.get("role") in SYSTEM_ROLES)
    others = [m for m in messages if m.get("role") not in SYSTEM_ROLES]
    first = next((i for i, m in enumerate(others) if m.get("role") == "user"), None)
    if not system:
        return others
    if first is None:
        return [{"role": "user", "content": system}, *others]
    content: Any = others[first].get("content")
    if isinstance(content, list):
        content = [{"type": "text", "text": system + "\n\n"}, *content]
    else:
        content = f"{system}\n\n{content or ''}"
    return [*others[:first], {**others[first], "content": content}, *others[first + 1 :]]
