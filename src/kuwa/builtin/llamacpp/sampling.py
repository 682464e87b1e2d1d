"""The generation options of llama.cpp, as its server names them: one table for help, command line, `-c`, request.

Only options that are set are sent, so llama.cpp's own defaults apply to the rest; `otherwise` names them.
"""

from __future__ import annotations

from kuwa.executor.options import Option

PARAMETERS = (
    Option("max_tokens", int, "Maximum number of tokens to generate; -1: until the context is full", low=-1),
    Option("temperature", float, "Sampling temperature; 0: always the most likely token", low=0, otherwise="0.8"),
    Option("top_k", int, "Sample from this many of the most likely tokens; 0: all", low=0, otherwise="40"),
    Option(
        "top_p",
        float,
        "Sample from the most likely tokens, up to this total probability",
        low=0,
        high=1,
        otherwise="0.95",
    ),
    Option(
        "min_p", float, "Minimum token probability, relative to the most likely token", low=0, high=1, otherwise="0.05"
    ),
    Option(
        "typical_p",
        float,
        "Locally typical sampling, up to this total probability; 1: off",
        low=0,
        high=1,
        otherwise="1",
    ),
    Option(
        "top_n_sigma",
        float,
        "Keep logits within this many standard deviations of the maximum; -1: off",
        low=-1,
        otherwise="-1",
    ),
    Option(
        "xtc_probability", float, "XTC: probability of removing the most likely tokens", low=0, high=1, otherwise="0"
    ),
    Option("xtc_threshold", float, "XTC: minimum probability of a token to be removed", low=0, high=1, otherwise="0.1"),
    Option("dynatemp_range", float, "Dynamic temperature: range around the temperature; 0: off", low=0, otherwise="0"),
    Option("dynatemp_exponent", float, "Dynamic temperature: exponent of the entropy", low=0, otherwise="1"),
    Option("seed", int, "Random seed, for reproducible output; -1: a random one", low=-(2**63), high=2**63 - 1),
    Option("repeat_penalty", float, "Penalty for recent tokens; 1: off", low=0, otherwise="1"),
    Option(
        "repeat_last_n", int, "Number of recent tokens that the penalties consider; -1: all", low=-1, otherwise="64"
    ),
    Option("presence_penalty", float, "Penalty for tokens that already occurred", low=-2, high=2, otherwise="0"),
    Option(
        "frequency_penalty", float, "Penalty for tokens that grows with each occurrence", low=-2, high=2, otherwise="0"
    ),
    Option("dry_multiplier", float, "DRY: penalty for repeated sequences; 0: off", low=0, otherwise="0"),
    Option("dry_base", float, "DRY: growth of the penalty with the length of the sequence", low=0, otherwise="1.75"),
    Option("dry_allowed_length", int, "DRY: length up to which repetition is allowed", low=0, otherwise="2"),
    Option(
        "dry_penalty_last_n", int, "DRY: number of recent tokens to consider; -1: all", low=-1, otherwise="the context"
    ),
    Option("mirostat", int, "Mirostat sampling: 0: off, 1 or 2: its version", choices=(0, 1, 2), otherwise="0"),
    Option("mirostat_tau", float, "Mirostat: target entropy", low=0, otherwise="5"),
    Option("mirostat_eta", float, "Mirostat: learning rate", low=0, otherwise="0.1"),
    Option("min_keep", int, "Minimum number of tokens that every sampler keeps", low=0, otherwise="0"),
    Option("ignore_eos", bool, "Continue past the end-of-text token", otherwise="false"),
    Option("logit_bias", dict, 'Bias added to the logits of tokens, by token id: {"1234": -100}'),
    Option("grammar", str, "GBNF grammar that the answer must match"),
    Option("json_schema", dict, "JSON schema that the answer must match"),
    Option("stop", list, "Stop before this text; repeat for several"),
)
