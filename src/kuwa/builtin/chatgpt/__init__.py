"""`chatgpt`: OpenAI, or any server that speaks its API, as an executor.

`executor` holds the class, `parameters` its generation options, `window` how long a conversation may be, `tokenizer`
exact counts where the model's tokenizer is here, and `upstream` the call to the provider.
"""

from kuwa.builtin.chatgpt.executor import ChatGPTExecutor

__all__ = ["ChatGPTExecutor"]
