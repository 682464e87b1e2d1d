"""The generation options of Gemini's API: what `--help` shows and `-c` may hold, and what OpenAI calls them.

`GeminiProExecutor` adds them to its command line; `contents` makes a configuration of them. A test compares them
with the installed SDK.
"""

from __future__ import annotations

from kuwa.executor.options import Option

_THRESHOLDS = ("off", "block_none", "block_only_high", "block_medium_and_above", "block_low_and_above")

PARAMETERS = (
    Option("temperature", float, "Sampling temperature; 0 is the most predictable", low=0, high=2),
    Option("top_p", float, "Sample from the most likely tokens, up to this total probability", low=0, high=1),
    Option("top_k", int, "Sample from this many of the most likely tokens", low=1),
    Option("max_output_tokens", int, "Maximum number of tokens to generate", low=1),
    Option("candidate_count", int, "Number of alternative answers", low=1),
    Option("stop_sequences", list, "Stop before this text; repeat for several"),
    Option("seed", int, "Random seed, for reproducible output where the model supports it"),
    Option("presence_penalty", float, "Penalty for tokens that already occurred", low=-2, high=2),
    Option("frequency_penalty", float, "Penalty for tokens that grows with each occurrence", low=-2, high=2),
    Option("response_logprobs", bool, "Return the log probability of each token"),
    Option("logprobs", int, "With response_logprobs: number of most likely tokens to return at each position", low=0),
)

THINKING = (
    Option("thinking_budget", int, "Maximum number of thinking tokens; 0: none, -1: the model decides", low=-1),
    Option("thinking_level", str, "Thinking level of newer models", choices=("minimal", "low", "medium", "high")),
    Option("include_thoughts", bool, "Return a summary of the thinking"),
)

CATEGORIES = {
    "harassment": "harassment",
    "hate_speech": "hate speech",
    "sexually_explicit": "sexually explicit content",
    "dangerous_content": "dangerous content",
}
SAFETY = tuple(
    Option(f"safety_{name}", str, f"Likelihood from which {what} is blocked", choices=_THRESHOLDS)
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
