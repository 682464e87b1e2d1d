"""Makes real GGUF models on the spot, without any download: `welcome` for a first start, and models for tests.

A scripted model is a llama of one block whose attention and feed-forward outputs are zero, so that the residual
stream is the embedding of the last token: `output.weight` then is a table from each token to the next one. Its
text is cut into pieces that no tokenizer input can produce, each a token of its own; every other token leads to
the first piece. So the answer is the script, whatever the prompt, template and (any sane) temperature.
A random model has the shape of a real one and says nothing sensible; it is there for loads and timings.
Called by `kuwa up` as a program (`python -m kuwa.builtin.llamacpp.maker welcome OUT`), by tests and benchmarks.
Needs numpy and gguf (the extra `llamacpp`), imported when a model is made.
"""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

GUIDE_FILE = Path(__file__).with_name("welcome.md")

TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n"
    "You may call these functions:\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    'Answer a call as <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n{% endif -%}'
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif -%}"
)
SPECIAL = (
    *("<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|im_start|>", "<|im_end|>"),
)
"""The first begins and pads, the last ends."""

MERGES = 256
CONFIDENCE = 12.0
"""Scale of a scripted model's logits: the next piece leads by tens of nats, so no sampler chooses another."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a random model. `vocabulary` is in tokens (filled up with unused words), 0 = as trained."""

    name: str
    architecture: Literal["llama", "qwen2"]
    width: int
    blocks: int
    feed_forward: int
    heads: int
    kv_heads: int
    context: int
    vocabulary: int = 0
    quantisation: Literal["F32", "F16", "Q8_0", "Q4_0"] = "F32"


TINY = Shape("kuwa-tiny", "llama", 64, 2, 128, 4, 2, 2048)
HALF_BILLION = Shape("kuwa-0.5b", "qwen2", 896, 24, 4864, 14, 2, 32768, 151_936, "Q8_0")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level BPE vocabulary: the 256 bytes, then one token per merge, in llama.cpp's own spelling."""

    tokens: list[str]
    merges: list[str]


def make_scripted(path: Path, text: str | bytes, *, name: str = "kuwa-script", context: int = 8192) -> None:
    """Write a model whose answer to anything is `text` (bytes may be invalid UTF-8), about 1 MB.

    Raises ValueError for an empty text.
    """
    import numpy as np

    vocabulary = train_vocabulary(GUIDE_FILE.read_text(encoding="utf-8"), MERGES)
    pieces = cut_pieces(text.encode() if isinstance(text, str) else text, frozenset(vocabulary.tokens))
    tokens = [*vocabulary.tokens, *pieces, *SPECIAL]
    shape = Shape(name, "llama", 256, 1, 32, 2, 1, context)
    end = len(tokens) - 1
    script = [*range(len(vocabulary.tokens), end + 1 - len(SPECIAL)), end]
    with _atomic(path) as part, _writer(part, shape, tokens, vocabulary.merges) as writer:
        _block_tensors(writer, shape, np.random.default_rng(0), residual=0.0)
        embedding, output = _next_token_table(len(tokens), script, shape.width)
        writer.add_tensor("token_embd.weight", embedding)
        writer.add_tensor("output.weight", output)


def make_welcome(path: Path) -> None:
    """Write the model that greets: its answer is the guide in English and Traditional Chinese."""
    make_scripted(path, GUIDE_FILE.read_text(encoding="utf-8"), name="kuwa-welcome", context=32768)


def make_tiny(path: Path) -> None:
    """Write the smallest random model that still has everything a real one has (0.6 MB)."""
    make_random(path, TINY)


def make_half_billion(path: Path) -> None:
    """Write a random model of 494 million parameters in Q8_0 (528 MB, some seconds), for timings."""
    make_random(path, HALF_BILLION)


def make_random(path: Path, shape: Shape) -> None:
    """Write a model of `shape` with random weights; every block of the same shape holds the same numbers."""
    import numpy as np

    vocabulary = train_vocabulary(GUIDE_FILE.read_text(encoding="utf-8"), MERGES)
    filled = len(vocabulary.tokens) + len(SPECIAL)
    padding = [f"Ġunused{i}" for i in range(shape.vocabulary - filled)]
    tokens = [*vocabulary.tokens, *padding, *SPECIAL]
    random = np.random.default_rng(0)
    with _atomic(path) as part, _writer(part, shape, tokens, vocabulary.merges) as writer:
        _block_tensors(writer, shape, random, residual=1.0)
        _add(writer, "token_embd.weight", _normal(random, len(tokens), shape.width), shape.quantisation)
        if shape.quantisation == "F32":
            _add(writer, "output.weight", _normal(random, len(tokens), shape.width), shape.quantisation)


def make_adapter(path: Path, shape: Shape = TINY) -> None:
    """Write a LoRA adapter of random weights for a random model of `shape`: its answers become others."""
    import numpy as np
    from gguf import GGUFWriter

    random = np.random.default_rng(3)
    rank = 4
    with _atomic(path) as part:
        writer = GGUFWriter(str(part), shape.architecture)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(rank))
        for block in range(shape.blocks):
            name = f"blk.{block}.attn_output.weight"
            writer.add_tensor(f"{name}.lora_a", _normal(random, rank, shape.width) * np.float32(20))
            writer.add_tensor(f"{name}.lora_b", _normal(random, shape.width, rank) * np.float32(20))
        _write(writer)


def make_projector(path: Path, width: int = TINY.width) -> None:
    """Write a projector of random weights, which gives a model of `width` eyes of four patches (0.3 MB)."""
    import numpy as np
    from gguf import GGUFWriter

    random = np.random.default_rng(4)
    image, patch, inner, blocks = 28, 14, 64, 2
    with _atomic(path) as part:
        writer = GGUFWriter(str(part), "clip")
        writer.add_type("mmproj")
        writer.add_bool("clip.has_vision_encoder", True)
        writer.add_string("clip.projector_type", "mlp")
        writer.add_bool("clip.use_gelu", True)
        numbers = {"embedding_length": inner, "feed_forward_length": 2 * inner, "block_count": blocks}
        numbers |= {"projection_dim": width, "attention.head_count": 4, "image_size": image, "patch_size": patch}
        for name, value in numbers.items():
            writer.add_uint32(f"clip.vision.{name}", value)
        writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
        writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
        writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
        writer.add_tensor("v.patch_embd.weight", _normal(random, inner, 3, patch, patch))
        writer.add_tensor("v.class_embd", _normal(random, inner))
        writer.add_tensor("v.position_embd.weight", _normal(random, (image // patch) ** 2 + 1, inner))
        layers = {"v.pre_ln": (inner,), "mm.0": (width, inner), "mm.2": (width, width)}
        for block in range(blocks):
            at = f"v.blk.{block}."
            layers |= {f"{at}{name}": (inner, inner) for name in ("attn_q", "attn_k", "attn_v", "attn_out")}
            layers |= {f"{at}ln1": (inner,), f"{at}ln2": (inner,)}
            layers |= {f"{at}ffn_up": (2 * inner, inner), f"{at}ffn_down": (inner, 2 * inner)}
        for name, extents in layers.items():
            writer.add_tensor(f"{name}.weight", _normal(random, *extents) + np.float32(len(extents) == 1))
            writer.add_tensor(f"{name}.bias", np.zeros(extents[0], np.float32))
        _write(writer)


def make_ears(path: Path, width: int = TINY.width) -> None:
    """Write a projector of random weights, which gives a model of `width` ears: 750 tokens for 30 s (0.3 MB)."""
    import numpy as np
    from gguf import GGUFWriter

    random = np.random.default_rng(5)
    bins, inner, positions = 80, 32, 1500
    with _atomic(path) as part:
        writer = GGUFWriter(str(part), "clip")
        writer.add_type("mmproj")
        writer.add_bool("clip.has_audio_encoder", True)
        writer.add_string("clip.projector_type", "qwen2a")
        numbers = {"embedding_length": inner, "feed_forward_length": inner, "block_count": 1, "num_mel_bins": bins}
        for name, value in {**numbers, "projection_dim": width, "attention.head_count": 2}.items():
            writer.add_uint32(f"clip.audio.{name}", value)
        writer.add_float32("clip.audio.attention.layer_norm_epsilon", 1e-6)
        for number, channels in ((1, bins), (2, inner)):
            writer.add_tensor(f"a.conv1d.{number}.weight", _normal(random, inner, channels, 3).astype(np.float16))
            writer.add_tensor(f"a.conv1d.{number}.bias", np.zeros((inner, 1), np.float32))
        writer.add_tensor("a.position_embd.weight", _normal(random, positions, inner))
        layers = {f"a.blk.0.{name}": (inner, inner) for name in ("attn_q", "attn_v", "attn_out", "ffn_up", "ffn_down")}
        layers |= {"a.blk.0.ln1": (inner,), "a.blk.0.ln2": (inner,), "a.post_ln": (inner,), "mm.a.fc": (width, inner)}
        for name, extents in layers.items():
            writer.add_tensor(f"{name}.weight", _normal(random, *extents) + np.float32(len(extents) == 1))
            writer.add_tensor(f"{name}.bias", np.zeros(extents[0], np.float32))
        writer.add_tensor("a.blk.0.attn_k.weight", _normal(random, inner, inner))
        _write(writer)


def train_vocabulary(corpus: str, merges: int) -> Vocabulary:
    """Train a byte-level BPE of at most `merges` merges on `corpus`."""
    words = Counter(tuple(spell(word.encode())) for word in re.findall(r" ?[^\W\d_]+|\d| ?[^\s\w]+|\s+", corpus))
    rules: list[str] = []
    tokens = [spell(bytes([byte])) for byte in range(256)]
    known = set(tokens)
    for _ in range(merges):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        rules.append(" ".join(best))
        joined = "".join(best)
        if joined not in known:
            known.add(joined)
            tokens.append(joined)
        words = Counter({_merge(word, best): count for word, count in words.items()})
    return Vocabulary(tokens, rules)


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    index = 0
    while index < len(word):
        if word[index : index + 2] == pair:
            merged.append(word[index] + word[index + 1])
            index += 2
        else:
            merged.append(word[index])
            index += 1
    return tuple(merged)


def cut_pieces(data: bytes, taken: frozenset[str]) -> list[str]:
    """Cut `data` into distinct pieces, none of them in `taken`, short ones first; joined they spell `data`."""
    if not data:
        raise ValueError("A scripted model needs a text: it has nothing to answer with an empty one.")
    pieces: list[str] = []
    used = set(taken)
    start = 0
    while start < len(data):
        end = start + 1
        while end < len(data) and spell(data[start:end]) in used:
            end += 1
        piece = spell(data[start:end])
        start = end
        while piece in used and pieces:  # a repeated tail joins the piece before it
            before = pieces.pop()
            used.discard(before)
            piece = before + piece
        pieces.append(piece)
        used.add(piece)
    if pieces[0] in taken:  # the whole text is one known token: end it with a line break of its own
        raise ValueError(f"The text {data!r} is too short for a scripted model; make it longer.")
    return pieces


def _spelling() -> dict[int, str]:
    """Byte-level BPE's alphabet: printable Latin-1 stands for itself, other bytes for U+0100 and up."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {byte: chr(byte) if byte in plain else chr(next(others)) for byte in range(256)}


_SPELLING = _spelling()


def spell(data: bytes) -> str:
    """`data` in the alphabet of byte-level vocabularies, one character per byte."""
    return "".join(_SPELLING[byte] for byte in data)


def _next_token_table(tokens: int, script: Iterable[int], width: int) -> tuple[Matrix, Matrix]:
    """Embedding and output matrices under which each token of `script` is followed by the next one.

    All other tokens share one direction, which leads to the script's first token; the script's own embeddings
    are orthogonal to it, so that no step of the script leads back to its start.
    """
    import numpy as np

    ids = list(script)
    random = np.random.default_rng(1)
    start = np.zeros(width, np.float32)
    start[0] = 1.0
    embedding = np.zeros((tokens, width), np.float32)
    embedding[:] = start
    steps = random.standard_normal((len(ids), width)).astype(np.float32)
    steps[:, 0] = 0.0
    embedding[ids] = steps / np.sqrt((steps * steps).sum(axis=1, keepdims=True))
    output = np.zeros((tokens, width), np.float32)
    output[ids[0]] = start * CONFIDENCE
    output[ids[1:]] = embedding[ids[:-1]] * CONFIDENCE
    return embedding, output


def _normal(random: np.random.Generator, *shape: int) -> Matrix:
    import numpy as np

    return random.standard_normal(shape, dtype=np.float32) * np.float32(0.05)


def _block_tensors(writer: GGUFWriter, shape: Shape, random: np.random.Generator, *, residual: float) -> None:
    """The norms and blocks; `residual` scales what attention and feed-forward add to the stream."""
    import numpy as np

    kv_width = shape.width // shape.heads * shape.kv_heads
    ones = np.ones(shape.width, np.float32)
    matrices = {
        "attn_q": _normal(random, shape.width, shape.width),
        "attn_k": _normal(random, kv_width, shape.width),
        "attn_v": _normal(random, kv_width, shape.width),
        "attn_output": _normal(random, shape.width, shape.width) * np.float32(residual),
        "ffn_gate": _normal(random, shape.feed_forward, shape.width),
        "ffn_up": _normal(random, shape.feed_forward, shape.width),
        "ffn_down": _normal(random, shape.width, shape.feed_forward) * np.float32(residual),
    }
    stored = {name: _quantised(matrix, shape.quantisation) for name, matrix in matrices.items()}
    writer.add_tensor("output_norm.weight", ones)
    for block in range(shape.blocks):
        writer.add_tensor(f"blk.{block}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{block}.ffn_norm.weight", ones)
        for name, (data, kind) in stored.items():
            writer.add_tensor(f"blk.{block}.{name}.weight", data, raw_dtype=kind)
        if shape.architecture == "qwen2":
            for name, width in (("attn_q", shape.width), ("attn_k", kv_width), ("attn_v", kv_width)):
                writer.add_tensor(f"blk.{block}.{name}.bias", np.zeros(width, np.float32))


def _quantised(matrix: Matrix, quantisation: str) -> tuple[Any, Any]:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    kind = GGMLQuantizationType[quantisation]
    return quantize(matrix, kind), kind


def _add(writer: GGUFWriter, name: str, matrix: Matrix, quantisation: str) -> None:
    data, kind = _quantised(matrix, quantisation)
    writer.add_tensor(name, data, raw_dtype=kind)


@contextmanager
def _writer(path: Path, shape: Shape, tokens: list[str], merges: list[str]) -> Generator[GGUFWriter]:
    """A writer that holds the metadata; the body of the `with` adds the tensors, then all of it is written."""
    from gguf import GGUFWriter, LlamaFileType, TokenType

    file_types = {
        "F32": LlamaFileType.ALL_F32,
        "F16": LlamaFileType.MOSTLY_F16,
        "Q8_0": LlamaFileType.MOSTLY_Q8_0,
        "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    }
    writer = GGUFWriter(str(path), shape.architecture)
    writer.add_name(shape.name)
    writer.add_file_type(file_types[shape.quantisation])
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    ordinary = len(tokens) - len(SPECIAL)
    writer.add_token_types([TokenType.NORMAL] * ordinary + [TokenType.CONTROL] * len(SPECIAL))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(ordinary)
    writer.add_pad_token_id(ordinary)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    yield writer
    _write(writer)


def _write(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def _atomic(path: Path) -> Generator[Path]:
    """A new file beside `path` that takes its place when the body has ended well: nobody sees half a model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> None:
    """`maker welcome|tiny|half-billion OUT` or `maker script OUT TEXT`."""
    parser = argparse.ArgumentParser(prog="python -m kuwa.builtin.llamacpp.maker", description="Make a GGUF.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    simple: dict[str, Callable[[Path], None]] = {
        "welcome": make_welcome,
        "tiny": make_tiny,
        "half-billion": make_half_billion,
    }
    for kind in simple:
        kinds.add_parser(kind).add_argument("out", type=Path)
    script = kinds.add_parser("script", help="a model whose answer is TEXT")
    script.add_argument("out", type=Path)
    script.add_argument("text")
    args = parser.parse_args(arguments)
    if args.kind == "script":
        make_scripted(args.out, args.text)
    else:
        simple[args.kind](args.out)


if __name__ == "__main__":
    main()
