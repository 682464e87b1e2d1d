"""The generation options of llama.cpp, as its server names them: one table for help, command line, `-c`, request.

Only what somebody set is sent, so llama.cpp's own defaults apply to the rest; `otherwise` names them.
"""

from __future__ import annotations

from kuwa.executor.options import Option

PARAMETERS = (
    Option("max_tokens", int, "Most tokens of an answer; -1: until the context is full", low=-1),
    Option("temperature", float, "Randomness of the answer, 0 is greedy", low=0, otherwise="0.8"),
    Option("top_k", int, "Draw from this many of the likeliest tokens, 0: all", low=0, otherwise="40"),
    Option(
        "top_p",
        float,
        "Draw from the likeliest tokens that together are this probable",
        low=0,
        high=1,
        otherwise="0.95",
    ),
    Option("min_p", float, "Leave out tokens rarer than this part of the likeliest", low=0, high=1, otherwise="0.05"),
    Option("typical_p", float, "Locally typical sampling, 1: off", low=0, high=1, otherwise="1"),
    Option(
        "top_n_sigma", float, "Keep logits within this many deviations of the best, -1: off", low=-1, otherwise="-1"
    ),
    Option("xtc_probability", float, "Chance to leave out the likeliest tokens", low=0, high=1, otherwise="0"),
    Option("xtc_threshold", float, "How probable a token must be to be left out so", low=0, high=1, otherwise="0.1"),
    Option("dynatemp_range", float, "Let the temperature vary by this much with the entropy", low=0, otherwise="0"),
    Option("dynatemp_exponent", float, "How the temperature follows the entropy", low=0, otherwise="1"),
    Option("seed", int, "Draw the same way each time; -1: anew"),
    Option("repeat_penalty", float, "Above 1: avoid tokens that occurred lately", low=0, otherwise="1"),
    Option("repeat_last_n", int, "How many tokens back the penalties look, -1: all", low=-1, otherwise="64"),
    Option("presence_penalty", float, "Above 0: avoid tokens that occurred", low=-2, high=2, otherwise="0"),
    Option(
        "frequency_penalty", float, "Above 0: avoid tokens the more often they occurred", low=-2, high=2, otherwise="0"
    ),
    Option("dry_multiplier", float, "Strength of the penalty on repeated sequences, 0: off", low=0, otherwise="0"),
    Option("dry_base", float, "How that penalty grows with a sequence's length", low=0, otherwise="1.75"),
    Option("dry_allowed_length", int, "Repeated sequences up to this length are free", low=0, otherwise="2"),
    Option(
        "dry_penalty_last_n", int, "How many tokens back that penalty looks, -1: all", low=-1, otherwise="the context"
    ),
    Option("mirostat", int, "Hold the surprise steady: 0 off, 1 or 2 the version", choices=(0, 1, 2), otherwise="0"),
    Option("mirostat_tau", float, "Mirostat's target surprise", low=0, otherwise="5"),
    Option("mirostat_eta", float, "Mirostat's learning rate", low=0, otherwise="0.1"),
    Option("min_keep", int, "Every sampler leaves at least this many tokens", low=0, otherwise="0"),
    Option("ignore_eos", bool, "Go on where the model would end", otherwise="false"),
    Option("logit_bias", dict, 'Make tokens likelier or rarer, by token id: {"1234": -100}'),
    Option("grammar", str, "Answer only what this GBNF grammar allows"),
    Option("json_schema", dict, "Answer only JSON that keeps to this schema"),
    Option("stop", list, "End the answer before this text; repeat for several"),
)
