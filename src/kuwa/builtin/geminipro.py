"""`geminipro`: Google's Gemini as an executor. Listed and documented; this version cannot serve it yet.

Its options are complete, so that `--help` and command lines stay as they are when it can.
"""

from __future__ import annotations

import argparse

from kuwa.executor import LLMExecutor, NotBuiltYet
from kuwa.executor.options import Option, add_options

# Google retires dated models within a year or two; the alias goes on naming the current one.
DEFAULT_MODEL = "gemini-flash-latest"

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
    Option("thinking_budget", int, "Most tokens spent on thinking; 0 for none, -1 to leave it to the model", low=-1),
)

SAFETY = tuple(
    Option(f"safety_{name}", str, f"From which likelihood on {what} is blocked", choices=_THRESHOLDS)
    for name, what in (
        ("harassment", "harassment"),
        ("hate_speech", "hate speech"),
        ("sexually_explicit", "sexually explicit content"),
        ("dangerous_content", "dangerous content"),
    )
)


class GeminiProExecutor(LLMExecutor):
    LLM_name = "gemini-pro"
    description = "[Cloud model] Google Gemini-Pro. Need API key."

    def extend_arguments(self, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("Model Options")
        group.add_argument("--api_key", default=None, help="The API key; GEMINI_API_KEY or GOOGLE_API_KEY otherwise")
        group.add_argument(
            "--no_override_api_key", action="store_true", help="Do not let a request bring a key of its own"
        )
        group.add_argument("--model", default=DEFAULT_MODEL, help="Name of the model")
        group.add_argument("--limit", type=int, default=30720, help="Most tokens of a prompt")
        group.add_argument("--system_prompt", default=None, help="The system prompt of conversations without one")
        group.add_argument("--no_system_prompt", action="store_true", help="Put no system prompt before the chat")
        add_options(parser, PARAMETERS + SAFETY)

    def setup(self) -> None:
        raise NotBuiltYet(
            "geminipro (Google Gemini) is not in this version of Kuwa yet. Use chatgpt with Gemini's "
            "OpenAI-compatible API instead: kuwa-executor chatgpt --access_code gemini-pro "
            "--base_url https://generativelanguage.googleapis.com/v1beta/openai/ "
            f"--model {DEFAULT_MODEL} --api_key <YOUR_API_KEY>"
        )
