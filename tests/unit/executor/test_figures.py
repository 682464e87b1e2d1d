"""The executor's metrics."""

from __future__ import annotations

import pytest

from kuwa.executor.figures import Figures


def figures() -> Figures:
    return Figures("mine", lambda: 0, lambda: 0)


@pytest.mark.parametrize("impossible", [-9, 2**53 + 1, 3 * 10**450])
def test_token_counts_that_cannot_be_true_are_left_out(impossible: int) -> None:
    counted = figures()
    for prompt, completion in ((4, 5), (impossible, 1), (1, impossible)):
        counted.answered(seconds=1, first_s=1, characters=3, prompt_tokens=prompt, completion_tokens=completion)
    lines = counted.exposition("")[0].decode().splitlines()
    assert 'vllm:prompt_tokens_total{model_name="mine"} 4.0' in lines
    assert 'vllm:generation_tokens_total{model_name="mine"} 5.0' in lines
    assert 'vllm:request_success_total{model_name="mine"} 3.0' in lines
