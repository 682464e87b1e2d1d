"""The generation options of the chat completions API: what `--help` shows and `-c` may hold.

`ChatGPTExecutor` adds them to its command line. A test compares `OPENAI` with the installed SDK. Upper bounds and
names of choices that differ between servers and models are left for the server to judge.
"""

from __future__ import annotations

from kuwa.executor.options import Option

OPENAI = (
    Option("temperature", float, "Sampling temperature; 0 is the most predictable", low=0),
    Option("top_p", float, "Sample from the most likely tokens, up to this total probability", low=0, high=1),
    Option("max_tokens", int, "Maximum number of tokens to generate; the older name, which most servers accept", low=1),
    Option(
        "max_completion_tokens",
        int,
        "Maximum number of tokens to generate, including reasoning; OpenAI's newer models accept only this name",
        low=1,
    ),
    Option("stop", list, "Stop before this text; repeat for several"),
    Option("seed", int, "Random seed, for reproducible output where the server supports it"),
    Option("n", int, "Number of alternative answers", low=1),
    Option("presence_penalty", float, "Penalty for tokens that already occurred", low=-2, high=2),
    Option("frequency_penalty", float, "Penalty for tokens that grows with each occurrence", low=-2, high=2),
    Option("logit_bias", dict, 'Bias added to the logits of tokens, by token id: {"1234": -100}'),
    Option("logprobs", bool, "Return the log probability of each token"),
    Option("top_logprobs", int, "With logprobs: number of most likely tokens to return at each position", low=0),
    Option("parallel_tool_calls", bool, "Allow several tool calls in one answer"),
    Option("reasoning_effort", str, "Reasoning effort, for example low, medium or high"),
    Option("verbosity", str, "Verbosity of newer models: low, medium or high"),
    Option("service_tier", str, "Service tier of the provider, for example auto or flex"),
    Option("store", bool, "Let the provider store the answers"),
)
COMPATIBLE = (
    Option("top_k", int, "Sample from this many of the most likely tokens (vLLM, llama-server; not OpenAI)", low=-1),
    Option("min_p", float, "Minimum token probability, relative to the most likely token (not OpenAI)", low=0, high=1),
    Option("repetition_penalty", float, "Repetition penalty; 1: off (vLLM; not OpenAI)", low=0),
)
PARAMETERS = OPENAI + COMPATIBLE

# Two spellings of one limit: a request that sets either has set both, since servers refuse a body that holds both.
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")

# Options that the older completions API lacks or defines differently (its logprobs is a number).
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
