"""`chatgpt`: OpenAI, or any server that speaks its API, as an executor.

`executor` holds the class, `parameters` its generation options, `context` the trimming of old turns, `upstream`
the call to the provider and `failures` what goes wrong with it.
"""

from kuwa.builtin.chatgpt.executor import ChatGPTExecutor

__all__ = ["ChatGPTExecutor"]
