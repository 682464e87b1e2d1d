"""`huggingface`: any model that transformers loads, many requests at once.

`executor` is what the framework starts. `loading` makes a model of a folder or a hub name; what serves it is a
`serving.Serving`: `chat` on `kuwa.engine`, `vectors` for models that make embeddings or scores instead of text, `vllm`
for one in a vLLM server. For `chat`, `prompting` makes token ids of messages, `sampling` reads a request's generation
options, and `answer` makes chunks of the tokens that come (`detokenizer` their text, `parts` reasoning and tool calls
in it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kuwa.builtin.huggingface.executor import HuggingfaceExecutor

__all__ = ["HuggingfaceExecutor"]


def __getattr__(name: str) -> Any:
    """Loads the executor when it is asked for."""
    if name != "HuggingfaceExecutor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kuwa.builtin.huggingface.executor import HuggingfaceExecutor

    return HuggingfaceExecutor
