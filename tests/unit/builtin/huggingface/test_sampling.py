"""Which generation options hold: the layers, and what the engine is told."""

from __future__ import annotations

from typing import Any

import pytest

from kuwa.builtin.huggingface.sampling import decided, from_pairs, options_of, own_options, samplings, stop_tokens
from kuwa.executor.arguments import UsageError
from kuwa.executor.request import Request
from kuwa.wire.errors import InvalidRequest

DEFAULTS = {"max_new_tokens": 4096, "do_sample": False}


def request(**parameters: Any) -> Request:
    return Request(id="r", access_code="m", parameters=parameters)


def sampling(defaults: dict[str, Any] | None = None, **parameters: Any) -> Any:
    asked = request(**parameters)
    return samplings(asked, options_of(asked, defaults or DEFAULTS), 100)[0]


def test_without_a_word_about_it_the_likeliest_token_is_taken() -> None:
    assert sampling().greedy
    assert sampling(top_p=0.5).greedy


def test_a_temperature_asks_for_drawing_and_zero_for_the_likeliest() -> None:
    assert sampling(temperature=0.7).temperature == 0.7
    assert sampling({**DEFAULTS, "do_sample": True, "temperature": 0.7}, temperature=0).greedy


def test_do_sample_goes_before_the_temperature_of_its_own_layer() -> None:
    assert sampling(temperature=0.7, do_sample=False).greedy
    assert sampling(do_sample=True).temperature == 1.0
    assert decided({"temperature": 0.7, "do_sample": False})["do_sample"] is False


def test_the_models_own_config_counts_where_it_can_be_read() -> None:
    own = own_options({"temperature": 0.6, "top_k": 20, "top_p": "odd", "max_new_tokens": 9, "eos_token_id": 2})
    assert own == {"temperature": 0.6, "top_k": 20, "do_sample": True}


def test_pairs_are_read_like_options() -> None:
    assert from_pairs(["temperature=0.5", "stop=a", "stop=b", "do_sample=true"]) == {
        "temperature": 0.5,
        "stop": ["a", "b"],
        "do_sample": True,
    }
    for pair in ("temperature", "nonsense=1", "top_k=x"):
        with pytest.raises(UsageError, match="generation_kwargs"):
            from_pairs([pair])


def test_every_parameter_reaches_the_engine() -> None:
    told = sampling(
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        typical_p=0.8,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"7": -100},
        seed=11,
    )
    assert (told.temperature, told.top_k, told.top_p, told.min_p, told.typical_p) == (0.5, 3, 0.9, 0.1, 0.8)
    assert (told.repetition_penalty, told.presence_penalty, told.frequency_penalty) == (1.2, 0.5, -0.5)
    assert (told.logit_bias, told.seed, told.logprobs) == ({7: -100.0}, 11, None)


def test_several_answers_have_seeds_of_their_own_that_follow_from_the_one_given() -> None:
    asked = request(n=3, seed=5, temperature=1)
    first = [s.seed for s in samplings(asked, options_of(asked, DEFAULTS), 100)]
    assert len(set(first)) == 3
    assert first == [s.seed for s in samplings(asked, options_of(asked, DEFAULTS), 100)]
    assert sampling(temperature=1).seed != sampling(temperature=1).seed


@pytest.mark.parametrize("bias", [{"100": 1}, {"-1": 1}, {"x": 1}, {"1": 101}, {"1": "much"}, {"1": None}])
def test_a_bias_that_cannot_be_is_refused(bias: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="logit_bias"):
        sampling(logit_bias=bias)


@pytest.mark.parametrize("ids", [[100], ["a"], [True], "a"])
def test_stop_tokens_that_cannot_be_are_refused(ids: Any) -> None:
    assert stop_tokens(request(stop_token_ids=[1, 2]), 100) == {1, 2}
    with pytest.raises(InvalidRequest, match="stop_token_ids"):
        stop_tokens(request(stop_token_ids=ids), 100)


def test_max_tokens_is_the_openai_name_of_max_new_tokens() -> None:
    assert options_of(request(max_tokens=5), DEFAULTS)["max_new_tokens"] == 5
    with pytest.raises(InvalidRequest, match="top_k"):
        options_of(request(top_k=-1), DEFAULTS)


def test_log_probabilities_are_asked_for_in_two_ways() -> None:
    assert sampling(logprobs=True).logprobs == 0
    assert sampling(logprobs=True, top_logprobs=4).logprobs == 4
    completion = Request(id="r", access_code="m", kind="completion", parameters={"logprobs": 3})
    assert samplings(completion, options_of(completion, DEFAULTS), 100)[0].logprobs == 3
    completion.parameters["logprobs"] = 99
    with pytest.raises(InvalidRequest, match="at most 20"):
        samplings(completion, options_of(completion, DEFAULTS), 100)
