"""Reads a GGUF file's header and refuses a file that could not, or must not, be loaded.

llama.cpp answers some malformed files by ending its process, some only when the first request comes. So the
executor reads the header itself before it starts the engine: one clear error for the person who typed the path.
The reader looks at counts, types, lengths and offsets, keeps only the values it reports, and takes bounded time
and memory on any bytes. What it does not know (a newer tensor type, an architecture) is left to llama.cpp.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

# Bounds far above any real model; they keep time and memory small on garbage.
MAX_KEYS = 65_536
MAX_TENSORS = 100_000
MAX_KEY_BYTES = 65_535
MAX_STRING_BYTES = 16 * 1024 * 1024
MAX_LISTED_STRINGS = 4_000_000
MAX_TENSOR_NAME_BYTES = 63
MAX_DIMENSIONS = 4
MAX_BLOCKS = 512
"""llama.cpp ends its process beyond this many."""
MAX_CONTEXT = 2**31 - 1

MAX_FAULT = 500
"""Characters."""

KEPT_STRING_BYTES = 1024 * 1024
TOKENS = "tokenizer.ggml.tokens"
WHOLE_TEXT = ("gpt2", "llama")
"""Tokenizers whose tokens spell the whole text, byte for byte: they leave out nothing of it."""
POOLS_LAST = 3
POOLS_FOR_RANKING = 4

Value = int | float | bool | str

STRING, ARRAY = 8, 9
_SCALARS: Final[dict[int, struct.Struct]] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

TENSOR_TYPES: Final[dict[int, tuple[str, int, int]]] = {
    # ggml type: name, elements in a block, bytes of a block
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}


Kind = Literal["model", "mmproj", "adapter"]
"""A language model; the projector that gives one its eyes; a LoRA adapter."""

KINDS: Final[dict[Kind, str]] = {
    "model": "a language model",
    "mmproj": "a projector for images (see --mmproj)",
    "adapter": "a LoRA adapter (see --lora)",
}


class BadModelFile(ValueError):
    """The file is no GGUF file that llama.cpp could use as wanted; the message names the file and the fault."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a sound header says. Sizes are in bytes, `context_length` is what the model was trained for (tokens).

    `quantisation` is the tensor type that holds the most parameters; `chat_template` is empty where the file has
    none (or one too long to be a template). Projectors and adapters have no context and no blocks (0).
    """

    kind: Kind
    architecture: str
    name: str
    context_length: int
    block_count: int
    quantisation: str
    parameters: int
    tensors: int
    size: int
    chat_template: str
    licence: str
    pooled: bool
    """Made for embeddings or reranking: it says how its vectors are pooled."""
    ranks: bool
    """Made for reranking."""
    pools_last: bool
    """Of each text the last vector counts, so a text may be read in pieces."""
    longest_token: int
    """In bytes; 0 where a token may stand for a text of any length, as an unknown word does."""


def read_header(path: Path, wanted: Collection[Kind] = ("model",)) -> GgufHeader:
    """Read and check the header of the file at `path`, which is to be of a `wanted` kind.

    Raises BadModelFile, naming file and fault.
    """
    try:
        if path.is_dir():
            raise BadModelFile(f"{path} is a folder; give the path of the .gguf file itself.")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise BadModelFile(f"{path} is empty (0 bytes); copy or download it again.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _Reader(data, size, wanted).header()
    except _Fault as fault:
        raise BadModelFile(f"{path} cannot be served: {fault}") from fault
    except FileNotFoundError as error:
        raise BadModelFile(f"There is no file {path}; check --model_path.") from error
    except OSError as error:
        raise BadModelFile(f"{path} cannot be read: {error.strerror or error}.") from error
    _check_siblings(path)
    return header


def parse_header(data: bytes) -> GgufHeader:
    """`read_header` for a whole file that is in memory. Raises BadModelFile."""
    try:
        return _Reader(data, len(data), ("model",)).header()
    except _Fault as fault:
        raise BadModelFile(f"The data cannot be served: {fault}") from fault


def _check_siblings(path: Path) -> None:
    """A model may be split over files `…-00001-of-00003.gguf`; llama.cpp is given the first and opens the rest."""
    split = re.fullmatch(r"(.*-)(\d{5})(-of-)(\d{5})(\.gguf)", path.name)
    if split is None:
        return
    first, parts = int(split[2]), int(split[4])
    if first != 1:
        raise BadModelFile(f"{path} is part {first} of a split model; give part 1, its {parts} parts side by side.")
    for part in range(2, min(parts, 1000) + 1):
        other = path.with_name(f"{split[1]}{part:05}{split[3]}{split[4]}{split[5]}")
        if not other.is_file():
            raise BadModelFile(f"{path} is split into {parts} files, and {other.name} is not beside it.")


class _Fault(Exception):
    """What is wrong with the bytes, without the file's name. Short, though garbage may hold long names."""

    def __init__(self, fault: str) -> None:
        super().__init__(
            fault if len(fault) <= MAX_FAULT else f"{fault[: MAX_FAULT // 2]} … {fault[-MAX_FAULT // 2 :]}"
        )


class _Reader:
    """One pass over the header, from its first byte to the end of the tensor list."""

    def __init__(self, data: bytes | mmap.mmap, size: int, wanted: Collection[Kind]) -> None:
        self._wanted = wanted
        self._kind: Kind = "model"
        self._data = data
        self._size = size
        self._at = 0
        self._values: dict[str, Value] = {}
        self._parameters: dict[str, int] = {}
        self._strings_left = MAX_LISTED_STRINGS
        self._longest_token = 0

    def header(self) -> GgufHeader:
        tensor_count, key_count = self._preamble()
        for _ in range(key_count):
            self._key_value()
        self._model()
        self._tensors(tensor_count)
        return self._summary(tensor_count)

    def _preamble(self) -> tuple[int, int]:
        magic = self._data[:4]
        if magic != MAGIC:
            what = f"it begins with {magic!r}" if self._size >= 4 else f"it has only {self._size} bytes"
            raise _Fault(f"it is no GGUF file: {what}, not {MAGIC!r}.")
        self._at = 4
        version = self._unpack(_U32, "the version")
        if version not in VERSIONS:
            if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
                raise _Fault("it is a big-endian GGUF; convert it with gguf-convert-endian.")
            raise _Fault(f"its GGUF version is {version}; versions {VERSIONS[0]} and {VERSIONS[1]} are known.")
        tensors = self._unpack(_U64, "the number of tensors")
        keys = self._unpack(_U64, "the number of keys")
        if not 0 < tensors <= MAX_TENSORS:
            raise _Fault(f"its header says {tensors} tensors, which no model has.")
        if not 0 < keys <= MAX_KEYS:
            raise _Fault(f"its header says {keys} metadata keys, which no model has.")
        return tensors, keys

    def _key_value(self) -> None:
        key = self._string("a metadata key", MAX_KEY_BYTES)
        if not key or key in self._values:
            raise _Fault(f"its metadata key {key!r} is {'repeated' if key else 'empty'}.")
        kind = self._unpack(_U32, f"the type of {key!r}")
        if kind == STRING:
            self._values[key] = self._text_value(key)
        elif kind == ARRAY:
            self._array(key)
            self._values[key] = ""  # only that it was there: arrays are vocabularies and the like
        elif kind in _SCALARS:
            self._values[key] = self._unpack(_SCALARS[kind], f"the value of {key!r}")
        else:
            raise _Fault(f"its metadata key {key!r} has the unknown type {kind}.")

    def _text_value(self, key: str) -> str:
        start, length = self._span(f"the value of {key!r}", MAX_STRING_BYTES)
        if length > KEPT_STRING_BYTES:
            return ""
        return self._data[start : start + length].decode("utf-8", "replace")

    def _array(self, key: str) -> None:
        kind = self._unpack(_U32, f"the element type of {key!r}")
        count = self._unpack(_U64, f"the length of {key!r}")
        if kind == STRING:
            if count > min(self._strings_left, (self._size - self._at) // 8):
                raise _Fault(f"its metadata key {key!r} claims {count} texts, more than it can hold.")
            self._strings_left -= count
            what = f"a text of {key!r}"
            for _ in range(count):
                _, length = self._span(what, MAX_STRING_BYTES)
                if key == TOKENS and length > self._longest_token:
                    self._longest_token = length
        elif kind in _SCALARS:
            length = count * _SCALARS[kind].size
            if length > self._size - self._at:
                raise _Fault(f"its metadata key {key!r} claims {count} values, more than the file can hold.")
            self._at += length
        else:
            raise _Fault(f"its metadata key {key!r} is a list of the unknown type {kind}.")

    def _model(self) -> None:
        """The values that llama.cpp relies on without checking them."""
        values = self._values
        self._check_kind()
        split = values.get("split.no", 0)
        if split != 0:
            raise _Fault(f"it is a later part (number {split}) of a split model; give the first part.")
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", architecture):
            raise _Fault(f"its architecture is {architecture!r}; a model names one in general.architecture.")
        if self._kind == "model":
            self._integer(f"{architecture}.context_length", 1, MAX_CONTEXT)
            self._integer(f"{architecture}.block_count", 1, MAX_BLOCKS)
            self._integer(f"{architecture}.embedding_length", 1, 2**24)
            if not isinstance(values.get("tokenizer.ggml.model"), str):
                raise _Fault("it holds no tokenizer (tokenizer.ggml.model is missing).")
        if "general.alignment" in values:
            alignment = self._integer("general.alignment", 1, 2**20)
            if alignment & (alignment - 1):
                raise _Fault(f"its general.alignment is {alignment}, which is no power of two.")

    def _check_kind(self) -> None:
        said = self._values.get("general.type", "model")
        if self._values.get("general.architecture") == "clip":
            said = "mmproj"  # older projectors do not say what they are
        for kind in self._wanted:
            if kind == said:
                self._kind = kind
                return
        what = next((text for kind, text in KINDS.items() if kind == said), f"something of type {said!r}")
        raise _Fault(f"it holds {what}, not {' or '.join(KINDS[kind] for kind in self._wanted)}.")

    def _integer(self, key: str, low: int, high: int) -> int:
        value = self._values.get(key)
        if type(value) is not int:
            raise _Fault(f"its {key} is {'missing' if value is None else 'no number'}; every model has one.")
        if not low <= value <= high:
            raise _Fault(f"its {key} is {value}, not between {low} and {high}.")
        return value

    def _tensors(self, count: int) -> None:
        alignment = int(self._values.get("general.alignment", DEFAULT_ALIGNMENT))
        names: set[str] = set()
        ends: list[tuple[int, str]] = []
        for _ in range(count):
            name, offset, length = self._tensor()
            if name in names:
                raise _Fault(f"its tensor {name!r} is listed twice.")
            if offset % alignment:
                raise _Fault(f"its tensor {name!r} is not aligned to {alignment} bytes.")
            names.add(name)
            ends.append((offset + length, name))
        start = -(-self._at // alignment) * alignment
        end, last = max(ends)
        if start + end > self._size:
            raise _Fault(
                f"it is cut off: its tensor {last!r} ends at byte {start + end}, and the file has {self._size}. "
                "Download or copy it again."
            )

    def _tensor(self) -> tuple[str, int, int]:
        """One entry of the tensor list: name, offset and length in bytes (0 for a type that is unknown here)."""
        name = self._string("a tensor's name", MAX_TENSOR_NAME_BYTES)
        dimensions = self._unpack(_U32, f"the shape of {name!r}")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise _Fault(f"its tensor {name!r} has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}.")
        elements = 1
        row = 1
        for index in range(dimensions):
            extent = self._unpack(_U64, f"the shape of {name!r}")
            if not 0 < extent < 2**48 or elements * extent >= 2**56:
                raise _Fault(f"its tensor {name!r} has an impossible shape.")
            elements *= extent
            row = extent if index == 0 else row
        kind = self._unpack(_U32, f"the type of {name!r}")
        offset = self._unpack(_U64, f"the offset of {name!r}")
        if offset > self._size:
            raise _Fault(f"it is cut off: its tensor {name!r} begins beyond its end. Download or copy it again.")
        type_name, block, block_bytes = TENSOR_TYPES.get(kind, (f"type {kind}", 1, 0))
        if row % block:
            raise _Fault(f"its tensor {name!r} has rows of {row}, no multiple of {type_name}'s {block}.")
        self._parameters[type_name] = self._parameters.get(type_name, 0) + elements
        return name, offset, elements // block * block_bytes

    def _summary(self, tensors: int) -> GgufHeader:
        architecture = str(self._values["general.architecture"])
        context = self._values.get(f"{architecture}.context_length", 0)
        blocks = self._values.get(f"{architecture}.block_count", 0)
        pooling = self._values.get(f"{architecture}.pooling_type", 0)
        return GgufHeader(
            kind=self._kind,
            architecture=architecture,
            name=_text(self._values, "general.name"),
            context_length=context if isinstance(context, int) else 0,
            block_count=blocks if isinstance(blocks, int) else 0,
            quantisation=max(self._parameters, key=lambda name: self._parameters[name]),
            parameters=sum(self._parameters.values()),
            tensors=tensors,
            size=self._size,
            chat_template=_text(self._values, "tokenizer.chat_template"),
            licence=_text(self._values, "general.license"),
            pooled=pooling != 0,
            ranks=pooling == POOLS_FOR_RANKING,
            pools_last=pooling == POOLS_LAST,
            longest_token=self._longest_token if self._values.get("tokenizer.ggml.model") in WHOLE_TEXT else 0,
        )

    def _unpack(self, layout: struct.Struct, what: str) -> int:
        end = self._at + layout.size
        if end > self._size:
            raise _Fault(f"it is cut off at byte {self._size}, inside {what}. Download or copy it again.")
        (value,) = layout.unpack_from(self._data, self._at)
        self._at = end
        return value

    def _span(self, what: str, most: int) -> tuple[int, int]:
        """Where the next text lies: its start and its length in bytes."""
        length = self._unpack(_U64, what)
        start = self._at
        if length > most:
            raise _Fault(f"{what} claims {length} bytes, more than the {most} that are allowed.")
        if length > self._size - start:
            raise _Fault(f"it is cut off at byte {self._size}, inside {what}. Download or copy it again.")
        self._at = start + length
        return start, length

    def _string(self, what: str, most: int) -> str:
        start, length = self._span(what, most)
        try:
            return self._data[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise _Fault(f"{what} at byte {start} is no UTF-8 text.") from error


def _text(values: Mapping[str, Value], key: str) -> str:
    value = values.get(key, "")
    return value if isinstance(value, str) else ""
