"""Where weights go and in what numbers, for machines that are not at hand."""

from __future__ import annotations

import pytest

from kuwa.builtin.huggingface.placement import Bits, placement, quantisation, why_not_quantised

GIB = 1 << 30


def test_without_a_gpu_nothing_is_said_of_devices() -> None:
    assert placement([]) == {}


def test_one_gpu_takes_all_of_the_model() -> None:
    assert placement([40 * GIB]) == {"device_map": {"": 0}}


def test_several_gpus_share_it_and_keep_room_for_keys_and_values() -> None:
    placed = placement([40 * GIB, 20 * GIB])
    assert placed == {"device_map": "auto", "max_memory": {0: 32 * GIB, 1: 16 * GIB}}
    assert "cpu" not in placed["max_memory"]


def test_bits_become_what_bitsandbytes_is_told() -> None:
    assert quantisation(0) == {}
    assert quantisation(8) == {"load_in_8bit": True}
    four = quantisation(4)
    assert (four["load_in_4bit"], four["bnb_4bit_quant_type"]) == (True, "nf4")


@pytest.mark.parametrize("bits", [4, 8])
def test_what_bits_need_is_said(bits: Bits) -> None:
    assert "pip install bitsandbytes" in why_not_quantised(bits, installed=False, gpus=2)
    assert "--visible_gpu" in why_not_quantised(bits, installed=True, gpus=0)
    assert f"--load_{bits}bits" in why_not_quantised(bits, installed=True, gpus=0)
    assert why_not_quantised(bits, installed=True, gpus=1) == ""
    assert why_not_quantised(0, installed=False, gpus=0) == ""
