"""`llamacpp`: serves a GGUF file through llama.cpp, which runs as a supervised child process.

`executor` is what the framework starts; `engine` keeps the child (`child`) alive and speaks to it; `header` looks
at the file before it is loaded; `maker` makes models for a first start and for tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kuwa.builtin.llamacpp.executor import LlamaCppExecutor

__all__ = ["LlamaCppExecutor"]


def __getattr__(name: str) -> Any:
    """Loads the executor when it is asked for: the child and the maker need nothing of the framework."""
    if name != "LlamaCppExecutor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kuwa.builtin.llamacpp.executor import LlamaCppExecutor

    return LlamaCppExecutor
