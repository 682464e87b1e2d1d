"""The generation options of llama.cpp, as its server names them: one table for help, command line, `-c`, request.

Only what somebody set is sent, so llama.cpp's own defaults hold for the rest; the help tells them.
"""

from __future__ import annotations

from kuwa.executor.options import Option

PARAMETERS = (
    Option("max_tokens", int, "Most tokens of an answer; -1: until the context is full", low=-1),
    Option("temperature", float, "Randomness of the answer, 0 is greedy; llama.cpp's own is 0.8", low=0),
    Option("top_k", int, "Draw from this many of the likeliest tokens, 0: all; own 40", low=0),
    Option("top_p", float, "Draw from the likeliest tokens that together are this probable; own 0.95", low=0, high=1),
    Option("min_p", float, "Leave out tokens rarer than this part of the likeliest; own 0.05", low=0, high=1),
    Option("typical_p", float, "Locally typical sampling, 1: off; own 1", low=0, high=1),
    Option("top_n_sigma", float, "Keep logits within this many deviations of the best, -1: off; own -1", low=-1),
    Option("xtc_probability", float, "Chance to leave out the likeliest tokens; own 0", low=0, high=1),
    Option("xtc_threshold", float, "How probable a token must be to be left out so; own 0.1", low=0, high=1),
    Option("dynatemp_range", float, "Let the temperature vary by this much with the entropy; own 0", low=0),
    Option("dynatemp_exponent", float, "How the temperature follows the entropy; own 1", low=0),
    Option("seed", int, "Draw the same way each time; -1: anew", low=-(2**63), high=2**63 - 1),
    Option("repeat_penalty", float, "Above 1: avoid tokens that occurred lately; own 1", low=0),
    Option("repeat_last_n", int, "How many tokens back the penalties look, -1: all; own 64", low=-1),
    Option("presence_penalty", float, "Above 0: avoid tokens that occurred; own 0", low=-2, high=2),
    Option("frequency_penalty", float, "Above 0: avoid tokens the more often they occurred; own 0", low=-2, high=2),
    Option("dry_multiplier", float, "Strength of the penalty on repeated sequences, 0: off; own 0", low=0),
    Option("dry_base", float, "How that penalty grows with a sequence's length; own 1.75", low=0),
    Option("dry_allowed_length", int, "Repeated sequences up to this length are free; own 2", low=0),
    Option("dry_penalty_last_n", int, "How many tokens back that penalty looks, -1: all; own the context", low=-1),
    Option("mirostat", int, "Hold the surprise steady: 0 off, 1 or 2 the version; own 0", choices=(0, 1, 2)),
    Option("mirostat_tau", float, "Mirostat's target surprise; own 5", low=0),
    Option("mirostat_eta", float, "Mirostat's learning rate; own 0.1", low=0),
    Option("min_keep", int, "Every sampler leaves at least this many tokens; own 0", low=0),
    Option("ignore_eos", bool, "Go on where the model would end; own false"),
    Option("logit_bias", dict, 'Make tokens likelier or rarer, by token id: {"1234": -100}'),
    Option("grammar", str, "Answer only what this GBNF grammar allows"),
    Option("json_schema", dict, "Answer only JSON that keeps to this schema"),
    Option("stop", list, "End the answer before this text; repeat for several"),
)
