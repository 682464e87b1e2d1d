"""What the command line and the machine make of llama.cpp's start: layers, GPUs, threads, hints."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xllamacpp

from kuwa.builtin.llamacpp.child import ChildConfig, package_parameters
from kuwa.builtin.llamacpp.header import GgufHeader, read_header
from kuwa.builtin.llamacpp.launch import (
    AUTO_LAYERS,
    Files,
    adapter_of,
    add_engine_options,
    child_config,
    shares,
    shown_layers,
)
from kuwa.builtin.llamacpp.machine import threads, unused
from kuwa.builtin.llamacpp.maker import make_tiny
from kuwa.executor import SetupFailed


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_engine_options(parser)
    return parser.parse_args(["--model_path", "m.gguf", *flags])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    make_tiny(path)
    return read_header(path)


def configured(header: GgufHeader, *flags: str) -> ChildConfig:
    args = parsed("--context_window", "9999", *flags)
    files = Files(Path("m.gguf"), None, None, ())
    return child_config(args, files, header, slots=1, chat_template="", environment={})


def parameters(**settings: Any) -> Any:
    return package_parameters(ChildConfig(model_path="m.gguf", context=100, slots=3, threads=2, **settings), xllamacpp)


@pytest.mark.parametrize(
    ("given", "shown"), [("0", "0"), ("12", "12"), ("auto", "as many as fit"), ("all", "all"), ("-1", "all")]
)
def test_layers_are_a_number_auto_or_all(given: str, shown: str) -> None:
    assert shown_layers(parsed(f"--ngl={given}").ngl) == shown


def test_layers_that_are_none_are_refused() -> None:
    with pytest.raises(argparse.ArgumentError, match="no number of layers"):
        parsed("--ngl", "some")


def test_auto_lets_llama_cpp_fit_the_layers_and_a_number_does_not() -> None:
    assert parameters(gpu_layers=AUTO_LAYERS).fit_params
    assert not parameters(gpu_layers=12).fit_params
    assert parameters(gpu_layers=12).n_gpu_layers == 12


def test_several_gpus_get_their_shares() -> None:
    told = parameters(gpu_layers=99, tensor_split=shares("3,1"), main_gpu=1, split_mode="row")
    assert list(told.tensor_split)[:3] == [3.0, 1.0, 0.0]
    assert told.main_gpu == 1
    assert told.split_mode == xllamacpp.llama_split_mode.LLAMA_SPLIT_MODE_ROW


def test_shares_that_are_none_are_refused() -> None:
    with pytest.raises(SetupFailed, match="tensor_split"):
        shares("3,x")


def test_the_context_is_told_for_all_slots_together() -> None:
    assert parameters().n_ctx == 300


@pytest.mark.parametrize(
    ("given", "read"),
    [("a.gguf", ("a.gguf", 1.0)), ("a.gguf=0.5", ("a.gguf", 0.5)), ("a=b.gguf=-2", ("a=b.gguf", -2.0))],
)
def test_an_adapter_may_bring_its_scale(given: str, read: tuple[str, float]) -> None:
    assert adapter_of(given) == read


def test_what_the_cpu_has_and_llama_cpp_was_built_without_is_named() -> None:
    flags = frozenset({"avx2", "avx512f", "amx_int8"})
    assert unused(flags, "CPU : AVX2 = 1 | LLAMAFILE = 1") == ["AVX512", "AMX_INT8"]
    assert unused(flags, "CPU : AVX2 = 1 | AVX512 = 1 | AMX_INT8 = 1") == []
    assert unused(frozenset({"avx2"}), "CPU : AVX2 = 1") == []


def test_some_core_is_always_left_for_threads() -> None:
    assert threads() >= 1


@pytest.mark.parametrize(
    ("flags", "pooled", "pools_last", "batches"),
    [
        ((), False, False, (2048, 512)),
        (("--pooling", "mean"), False, False, (3000, 3000)),
        (("--pooling", "rank", "--ubatch_size", "64"), True, True, (3000, 3000)),
        (("--pooling", "last"), False, False, (2048, 512)),
        ((), True, False, (3000, 3000)),
        ((), True, True, (2048, 512)),
    ],
)
def test_a_text_whose_vectors_all_count_is_computed_at_once(
    tiny: GgufHeader, flags: tuple[str, ...], pooled: bool, pools_last: bool, batches: tuple[int, int]
) -> None:
    header = replace(tiny, context_length=3000, pooled=pooled, pools_last=pools_last)
    config = configured(header, *flags)
    assert (config.batch, config.ubatch) == batches


def test_a_folder_for_prompts_becomes_its_owners_alone(tiny: GgufHeader, tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    folder.mkdir(mode=0o755)
    kept, other = folder / "old.slot", folder / "notes.txt"
    for file in (kept, other):
        file.touch(mode=0o644)
    configured(tiny, "--prompt_cache", str(folder))
    assert [path.stat().st_mode & 0o777 for path in (folder, kept, other)] == [0o700, 0o600, 0o644]
    configured(tiny, "--prompt_cache", str(tmp_path / "new" / "deep"))
    assert (tmp_path / "new" / "deep").stat().st_mode & 0o777 == 0o700
