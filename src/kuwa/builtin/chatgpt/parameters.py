"""The generation options of the chat completions API: what `--help` shows and `-c` may hold.

`ChatGPTExecutor` adds them to its command line. A test compares `OPENAI` with the installed SDK. Upper bounds and
names of choices that differ between servers and models are left for the server to judge.
"""

from __future__ import annotations

from kuwa.executor.options import Option

OPENAI = (
    Option("temperature", float, "Randomness of the answer; 0 is the most predictable", low=0),
    Option("top_p", float, "Draw from the likeliest tokens that together have this probability", low=0, high=1),
    Option("max_tokens", int, "Most tokens of an answer, in its older spelling, which most servers know", low=1),
    Option(
        "max_completion_tokens",
        int,
        "Most tokens of an answer, reasoning included; OpenAI's newer models take only this one",
        low=1,
    ),
    Option("stop", list, "End the answer before this text; repeat for several"),
    Option("seed", int, "Draw the same way each time, as far as the server can"),
    Option("n", int, "How many alternative answers are computed", low=1),
    Option("presence_penalty", float, "Above 0: avoid tokens that already occurred", low=-2, high=2),
    Option("frequency_penalty", float, "Above 0: avoid tokens the more often they occurred", low=-2, high=2),
    Option("logit_bias", dict, 'Make tokens likelier or rarer, by token id: {"1234": -100}'),
    Option("logprobs", bool, "Send the log probability of each token with the answer"),
    Option("top_logprobs", int, "With logprobs: how many of the likeliest tokens at each place", low=0),
    Option("parallel_tool_calls", bool, "Whether one answer may call several tools"),
    Option("reasoning_effort", str, "How long a reasoning model thinks, such as low, medium or high"),
    Option("verbosity", str, "How long the answers of newer models are: low, medium or high"),
    Option("service_tier", str, "Which tier of the provider's service computes the answer, such as auto or flex"),
    Option("store", bool, "Whether the provider keeps the answers"),
)
COMPATIBLE = (
    Option("top_k", int, "Draw from this many of the likeliest tokens (vLLM, llama-server; not OpenAI)", low=-1),
    Option("min_p", float, "Leave out tokens rarer than this part of the likeliest (not OpenAI)", low=0, high=1),
    Option("repetition_penalty", float, "Above 1: avoid what was said before (vLLM; not OpenAI)", low=0),
)
PARAMETERS = OPENAI + COMPATIBLE

# Two spellings of one limit: a request that sets either has set both, since servers refuse a body that holds both.
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")

# What the older completions API does not know or means differently (its logprobs is a number).
CHAT_ONLY = frozenset(
    {
        "max_completion_tokens",
        "logprobs",
        "top_logprobs",
        "parallel_tool_calls",
        "reasoning_effort",
        "verbosity",
        "service_tier",
        "store",
    }
)
