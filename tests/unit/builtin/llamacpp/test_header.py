"""The GGUF header reader on sound, cut, garbled and random files."""

from __future__ import annotations

import resource
import struct
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuwa.builtin.llamacpp.header import TENSOR_TYPES, BadModelFile, parse_header, read_header
from kuwa.builtin.llamacpp.maker import make_tiny
from mutation import HEADER_BYTES, mutated

MOST_MORE_MEMORY_KB = 200_000


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    make_tiny(path)
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> bytes:
    return path.read_bytes()


def fault(data: bytes) -> str:
    with pytest.raises(BadModelFile) as caught:
        parse_header(data)
    return str(caught.value)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    return struct.pack("<II", 4, value)


SOUND: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 512,
    "llama.block_count": 1,
    "llama.embedding_length": 32,
    "tokenizer.ggml.model": "gpt2",
}


def gguf(version: int = 3, tensors: bytes | None = None, count: int = 1, **changes: Any) -> bytes:
    """A file with the metadata of SOUND, changed: a value of None leaves a key out; `__` stands for a dot."""
    keys = {**SOUND, **{name.replace("__", "."): value for name, value in changes.items()}}
    keys = {name: value for name, value in keys.items() if value is not None}
    head = b"GGUF" + struct.pack("<IQQ", version, count, len(keys))
    metadata = b"".join(_text(name) + _value(value) for name, value in keys.items())
    return head + metadata + (tensor() if tensors is None else tensors) + bytes(32 * 34 * 2)


def tensor(name: str = "token_embd.weight", shape: tuple[int, ...] = (32, 32), kind: int = 8, offset: int = 0) -> bytes:
    shaped = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return _text(name) + shaped + struct.pack("<IQ", kind, offset)


def test_a_sound_file_is_described(path: Path) -> None:
    header = read_header(path)
    assert header.architecture == "llama"
    assert header.name == "kuwa-tiny"
    assert header.context_length == 2048
    assert header.block_count == 2
    assert header.quantisation == "F32"
    assert header.size == path.stat().st_size
    assert header.parameters * 4 <= header.size
    assert "<|im_start|>" in header.chat_template


def test_a_small_sound_file_is_described() -> None:
    header = parse_header(gguf())
    assert (header.quantisation, header.parameters, header.tensors) == ("Q8_0", 1024, 1)


@pytest.mark.parametrize(
    ("pooling", "pooled", "ranks"), [(None, False, False), (0, False, False), (1, True, False), (4, True, True)]
)
def test_a_file_says_whether_it_was_made_for_embeddings_or_for_ranking(
    pooling: int | None, pooled: bool, ranks: bool
) -> None:
    header = parse_header(gguf(llama__pooling_type=pooling))
    assert (header.pooled, header.ranks) == (pooled, ranks)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match=r"no file .*nowhere\.gguf"):
        read_header(tmp_path / "nowhere.gguf")


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(BadModelFile, match=r"empty\.gguf is empty"):
        read_header(tmp_path / "empty.gguf")


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match="is a folder"):
        read_header(tmp_path)


def test_every_file_that_is_cut_anywhere_is_refused(model: bytes) -> None:
    cuts = [*range(64), *range(64, HEADER_BYTES, 397), *range(HEADER_BYTES, len(model), 50_021), len(model) - 1]
    for cut in cuts:
        fault(model[:cut])


def test_a_file_that_is_cut_says_so(model: bytes) -> None:
    assert "cut off" in fault(model[: len(model) // 2])
    assert "Download or copy it again" in fault(model[: len(model) // 2])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "no GGUF file"),
        (b"GGU", "only 3 bytes"),
        (gguf(version=1), "version is 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(100), "big-endian"),
        (gguf(count=2**40), "tensors, which no model has"),
        (gguf(general__architecture=None), "architecture is None"),
        (gguf(general__architecture="../x"), "architecture is '../x'"),
        (gguf(general__type="adapter"), "a LoRA adapter (see --lora), not a language model"),
        (gguf(llama__context_length=0), "context_length is 0"),
        (gguf(llama__context_length=None), "context_length is missing"),
        (gguf(llama__context_length="many"), "context_length is no number"),
        (gguf(llama__block_count=100_000), "block_count is 100000"),
        (gguf(tokenizer__ggml__model=None), "no tokenizer"),
        (gguf(general__alignment=3), "no power of two"),
        (gguf(split__no=1), "later part"),
        (gguf(tensors=tensor(kind=8, shape=(33, 32))), "rows of 33"),
        (gguf(tensors=tensor(shape=(2**47, 2**47))), "impossible shape"),
        (gguf(tensors=tensor(shape=())), "0 dimensions"),
        (gguf(tensors=tensor(offset=7)), "not aligned"),
        (gguf(tensors=tensor(offset=2**60)), "begins beyond its end"),
        (gguf(tensors=tensor(name="x" * 64)), "more than the 63"),
        (gguf(tensors=tensor() + tensor(), count=2), "listed twice"),
        (gguf(extra=struct.pack("<I", 99)), "unknown type 99"),
        (gguf(extra=struct.pack("<IIQ", 9, 9, 1)), "list of the unknown type 9"),
        (gguf(extra=struct.pack("<IIQ", 9, 8, 2**60)), "texts, more than it can hold"),
        (gguf(extra=struct.pack("<IIQ", 9, 4, 2**62)), "values, more than the file can hold"),
        (gguf(extra=struct.pack("<IQ", 8, 2**50)), "claims"),
    ],
)
def test_each_fault_is_named(data: bytes, words: str) -> None:
    assert words in fault(data)


def test_a_part_of_a_split_model_names_what_is_missing(tmp_path: Path) -> None:
    for name in ("m-00001-of-00002.gguf", "n-00002-of-00002.gguf"):
        (tmp_path / name).write_bytes(gguf())
    with pytest.raises(BadModelFile, match=r"m-00002-of-00002\.gguf is not beside it"):
        read_header(tmp_path / "m-00001-of-00002.gguf")
    with pytest.raises(BadModelFile, match="give part 1"):
        read_header(tmp_path / "n-00002-of-00002.gguf")


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, HEADER_BYTES), st.one_of(st.integers(0, 255), st.sampled_from([0, 127, 255]))),
        min_size=1,
        max_size=8,
    )
)
def test_garbled_bytes_are_read_or_refused_and_nothing_else(model: bytes, changes: list[tuple[int, int]]) -> None:
    garbled = bytearray(model)
    for position, byte in changes:
        garbled[position] = byte
    try:
        header = parse_header(bytes(garbled))
    except BadModelFile:
        return
    assert header.context_length > 0
    assert 0 < header.block_count <= 512


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_behind_the_magic_are_refused(rest: bytes) -> None:
    fault(b"GGUF\x03\0\0\0" + rest)


def test_a_file_that_claims_endless_texts_is_refused_at_once() -> None:
    endless = struct.pack("<IIQ", 9, 8, 2**24)
    started = time.monotonic()
    fault(gguf(extra=endless + bytes(2**22)))
    assert time.monotonic() - started < 5


def test_the_table_of_tensor_types_is_that_of_the_gguf_package() -> None:
    import gguf as reference

    known = {int(kind): (kind.name, *sizes) for kind, sizes in reference.GGML_QUANT_SIZES.items()}
    assert known.items() <= TENSOR_TYPES.items()


def test_five_thousand_mutated_files_are_each_read_or_refused_within_five_seconds(model: bytes) -> None:
    random = Random(7)  # noqa: S311 - damage, no secret
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    faults: list[str] = []
    for _ in range(5000):
        try:
            parse_header(mutated(model, random))
        except BadModelFile as error:
            faults.append(str(error))
    assert time.process_time() - started <= 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= MOST_MORE_MEMORY_KB
    assert 1000 < len(faults) < 5000
    assert max(map(len, faults)) < 1000


@pytest.mark.parametrize(("tokenizer", "longest"), [("gpt2", 12), ("llama", 12), ("bert", 0), ("t5", 0)])
def test_the_longest_token_is_told_where_tokens_spell_the_whole_text(tokenizer: str, longest: int) -> None:
    tokens = ["a", "四個字元", "xyz"]
    listed = struct.pack("<IIQ", 9, 8, len(tokens)) + b"".join(map(_text, tokens))
    longer = struct.pack("<IIQ", 9, 8, 1) + _text("no token" * 20)
    data = gguf(tokenizer__ggml__model=tokenizer, tokenizer__ggml__tokens=listed, general__tags=longer)
    assert parse_header(data).longest_token == longest
