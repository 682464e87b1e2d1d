"""How long sequences may be: pure arithmetic of memory."""

from __future__ import annotations

import pytest

from kuwa.engine.sizing import GIB, DoesNotFit, cache_bytes, sequence_length


def test_a_sequence_is_as_long_as_the_model_allows_where_memory_suffices() -> None:
    assert sequence_length(4096, 16, 1024, GIB) == 4096


def test_memory_shortens_all_sequences_alike() -> None:
    assert sequence_length(8192, 16, 131072, 2 * GIB) == 1024


def test_a_model_without_a_growing_cache_needs_none() -> None:
    assert sequence_length(32768, 16, 0, 0) == 32768


def test_too_little_memory_is_said_with_what_would_do() -> None:
    with pytest.raises(DoesNotFit, match=r"--kv_cache_gb 0\.12"):
        sequence_length(8192, 16, 131072, GIB // 100)


def test_a_gpu_is_filled_and_main_memory_is_shared() -> None:
    assert cache_bytes(100, on_gpu=True) == 80
    assert cache_bytes(100, on_gpu=False) == 25
