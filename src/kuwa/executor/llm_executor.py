"""What executors of June 2024 import from this module. For old code alone; new code imports `kuwa.executor`."""

from __future__ import annotations

from kuwa.executor.base import LLMExecutor
from kuwa.executor.modelfile import Modelfile
from kuwa.executor.prompt import extract_last_url, rectify_chat_history, to_openai_chat_format

__all__ = ["LLMExecutor", "Modelfile", "extract_last_url", "rectify_chat_history", "to_openai_chat_format"]
