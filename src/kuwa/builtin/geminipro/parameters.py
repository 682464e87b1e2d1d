"""The generation options of Gemini's API: what `--help` shows and `-c` may hold, and what OpenAI calls them.

`GeminiProExecutor` adds them to its command line; `contents` makes a configuration of them. A test compares them
with the installed SDK.
"""

from __future__ import annotations

from kuwa.executor.options import Option

_THRESHOLDS = ("off", "block_none", "block_only_high", "block_medium_and_above", "block_low_and_above")

PARAMETERS = (
    Option("temperature", float, "Randomness of the answer; 0 is the most predictable", low=0, high=2),
    Option("top_p", float, "Draw from the likeliest tokens that together have this probability", low=0, high=1),
    Option("top_k", int, "Draw from this many of the likeliest tokens", low=1),
    Option("max_output_tokens", int, "Most tokens of an answer", low=1),
    Option("candidate_count", int, "How many alternative answers are computed", low=1),
    Option("stop_sequences", list, "End the answer before this text; repeat for several"),
    Option("seed", int, "Draw the same way each time, as far as the model can"),
    Option("presence_penalty", float, "Above 0: avoid tokens that already occurred", low=-2, high=2),
    Option("frequency_penalty", float, "Above 0: avoid tokens the more often they occurred", low=-2, high=2),
    Option("response_logprobs", bool, "Send the log probability of each token with the answer"),
    Option("logprobs", int, "With response_logprobs: how many of the likeliest tokens at each place", low=0),
)

THINKING = (
    Option("thinking_budget", int, "Most tokens spent on thinking; 0 for none, -1 to leave it to the model", low=-1),
    Option("thinking_level", str, "How long newer models think", choices=("minimal", "low", "medium", "high")),
    Option("include_thoughts", bool, "Send a summary of the thinking with the answer"),
)

CATEGORIES = {
    "harassment": "harassment",
    "hate_speech": "hate speech",
    "sexually_explicit": "sexually explicit content",
    "dangerous_content": "dangerous content",
}
SAFETY = tuple(
    Option(f"safety_{name}", str, f"From which likelihood on {what} is blocked", choices=_THRESHOLDS)
    for name, what in CATEGORIES.items()
)

TABLE = PARAMETERS + THINKING + SAFETY

# How a request in OpenAI's dialect spells these options; both spellings are understood.
OPENAI_NAMES = {
    "max_tokens": "max_output_tokens",
    "n": "candidate_count",
    "stop": "stop_sequences",
    "logprobs": "response_logprobs",
    "top_logprobs": "logprobs",
}
# What OpenAI's reasoning_effort is to models that count their thinking in tokens (Gemini 2.5).
EFFORT_BUDGETS = {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24576}
