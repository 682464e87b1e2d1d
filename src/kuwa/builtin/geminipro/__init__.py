"""`geminipro`: Google's Gemini as an executor, through Google's own SDK.

`executor` holds the class, `parameters` its generation options, `contents` what a request becomes on the way to
Gemini, `answer` what comes back, and `upstream` the call itself with what goes wrong with it.
"""

from kuwa.builtin.geminipro.executor import GeminiProExecutor

__all__ = ["GeminiProExecutor"]
