"""The engine's random numbers: uniform, and a function of seed and position alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kuwa.engine.randomness import derived_seed, uniform


@given(st.integers(), st.integers(min_value=0))
def test_a_number_lies_in_the_unit_interval_and_is_always_the_same(seed: int, position: int) -> None:
    number = uniform(seed, position)
    assert 0 <= number < 1
    assert number == uniform(seed, position)


def test_numbers_are_uniform_over_positions_and_over_seeds() -> None:
    for numbers in (
        [uniform(7, position) for position in range(20_000)],
        [uniform(seed, 3) for seed in range(20_000)],
    ):
        bins = [0] * 20
        for number in numbers:
            bins[int(number * 20)] += 1
        chi_square = sum((count - 1000) ** 2 / 1000 for count in bins)
        assert chi_square < 43.8  # 19 degrees of freedom, one in a thousand


def test_numbers_of_neighbouring_positions_are_independent() -> None:
    pairs = [(uniform(11, position), uniform(11, position + 1)) for position in range(20_000)]
    mean = sum((a - 0.5) * (b - 0.5) for a, b in pairs) / len(pairs)
    assert abs(mean * 12) < 0.03


def test_derived_seeds_differ_and_the_first_is_the_seed_itself() -> None:
    assert derived_seed(5, 0) == 5
    assert len({derived_seed(5, index) for index in range(1000)}) == 1000
