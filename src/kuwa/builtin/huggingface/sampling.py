"""Which generation options hold for a request, and what the engine is told of them. Pure; used by the executor.

Layers, lowest first: the table's defaults, the model's own generation config, the `-c` file, the command line, the
request. Whether tokens are drawn at all is decided by the highest layer that says so, by `do_sample` or by giving a
temperature; without a temperature they are drawn at 1.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from kuwa.builtin.huggingface.options import PARAMETERS
from kuwa.engine.randomness import derived_seed
from kuwa.engine.request import Sampling
from kuwa.executor.arguments import UsageError
from kuwa.executor.options import Option, merge
from kuwa.executor.request import Request
from kuwa.wire.errors import InvalidRequest
from kuwa.wire.json import is_list

MOST_TOP_LOGPROBS = 20
Values = dict[str, Any]
_TABLE: dict[str, Option] = {option.name: option for option in PARAMETERS}


def decided(layer: Mapping[str, Any]) -> Values:
    """A layer with what its temperature says about drawing said outright."""
    values = dict(layer)
    temperature = values.get("temperature")
    if "do_sample" not in values and isinstance(temperature, int | float):
        values["do_sample"] = temperature > 0
    return values


def own_options(generation_config: Mapping[str, Any]) -> Values:
    """The options that the model's generation config sets and the table knows; a value that is none is left out."""
    found: Values = {}
    for name, option in _TABLE.items():
        if name == "max_new_tokens" or generation_config.get(name) is None:
            continue  # how long answers are is not the model's to say
        try:
            found[name] = option.check(generation_config[name])
        except ValueError:
            continue
    return decided(found)


def from_pairs(pairs: Sequence[str]) -> Values:
    """The options of `--generation_kwargs KEY=VALUE`. Raises UsageError for what is none."""
    found: Values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        option = _TABLE.get(name.strip())
        if not equals or option is None:
            raise UsageError(f"--generation_kwargs {pair!r} is no KEY=VALUE of a generation option (see --help)")
        try:
            value = option.parse(text.strip())
        except ValueError as error:
            raise UsageError(f"--generation_kwargs: {name} {error}") from error
        found[option.name] = [*found.get(option.name, []), *value] if option.type is list else value
    return found


def options_of(request: Request, defaults: Mapping[str, Any]) -> Values:
    """All options of a request. Raises InvalidRequest naming the one whose value does not belong."""
    asked = decided(request.parameters)
    if (most := asked.get("max_tokens")) is not None:
        asked["max_new_tokens"] = most
    return merge(defaults, asked, PARAMETERS)


def samplings(request: Request, options: Mapping[str, Any], vocabulary: int) -> list[Sampling]:
    """What the engine is told for each of the request's answers (`n`). Raises InvalidRequest.

    With a seed each answer has one of its own that follows from it; without one they are drawn anew each time.
    """
    seed = options.get("seed")
    if seed is None:
        seed = secrets.randbits(63)
    common: Values = {
        "temperature": float(options.get("temperature", 1.0)) if options["do_sample"] else 0.0,
        "logit_bias": _bias(options.get("logit_bias") or {}, vocabulary),
        "logprobs": _logprobs(request),
    }
    for name in ("top_k", "top_p", "min_p", "typical_p"):
        if options.get(name) is not None:
            common[name] = options[name]
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        if options.get(name) is not None:
            common[name] = float(options[name])
    count = int(request.parameters.get("n") or 1)
    return [Sampling(seed=derived_seed(seed, index), **common) for index in range(count)]


def stop_tokens(request: Request, vocabulary: int) -> frozenset[int]:
    """The ids of the field `stop_token_ids`. Raises InvalidRequest."""
    given: Any = request.parameters.get("stop_token_ids") or []
    ids: list[Any] = given if is_list(given) else [given]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocabulary for i in ids):
        raise InvalidRequest(f"stop_token_ids must be a list of token ids below {vocabulary}.", param="stop_token_ids")
    return frozenset(ids)


def _bias(given: Mapping[str, Any], vocabulary: int) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in given.items():
        try:
            token, amount = int(key), float(value)
        except (TypeError, ValueError):
            token, amount = -1, 0.0
        if not 0 <= token < vocabulary or not -100 <= amount <= 100:
            raise InvalidRequest(
                f"logit_bias must map token ids below {vocabulary} to numbers from -100 to 100.", param="logit_bias"
            )
        bias[token] = amount
    return bias


def _logprobs(request: Request) -> int | None:
    """How many alternatives are to be reported: of a chat `logprobs` and `top_logprobs`, of a completion a number."""
    asked = request.parameters.get("logprobs")
    if asked is None or asked is False:
        return None
    count = request.parameters.get("top_logprobs") or 0 if request.kind == "chat" else asked
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MOST_TOP_LOGPROBS:
        raise InvalidRequest(f"logprobs must be at most {MOST_TOP_LOGPROBS}.", param="logprobs")
    return count
