"""How llama.cpp is started: the command-line options about it, and the `ChildConfig` that they and the machine make.

The executor adds the options and asks for the configuration once its files are on this disk. Every file that is given
to llama.cpp is looked at first by our own reader.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kuwa.builtin.llamacpp import machine
from kuwa.builtin.llamacpp.child import Adapter, ChildConfig
from kuwa.builtin.llamacpp.header import GgufHeader
from kuwa.executor import SetupFailed

log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 4096
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
POOLINGS = ("mean", "cls", "last", "rank")
ALL_LAYERS = 9999
AUTO_LAYERS = -1
SERVER_NAME = "llama-server"
SLOT_SUFFIX = ".slot"
PRIVATE_FOLDER, PRIVATE_FILE, OTHERS = 0o700, 0o600, 0o077


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one start, on this disk; what was not given is None. An adapter comes with its scale."""

    model: Path
    projector: Path | None
    draft: Path | None
    adapters: tuple[tuple[Path, float], ...]


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """The options of the model's files and of the machine's part in it."""
    model = parser.add_argument_group("Model Options")
    model.add_argument("--model_path", required=True, help="Path of the GGUF file, or hf://REPO?FILE")
    model.add_argument("--visible_gpu", default=None, help="The GPUs to use, as in CUDA_VISIBLE_DEVICES")
    model.add_argument(
        "--ngl",
        type=_layers,
        default=0,
        help="Layers to offload to the GPU: a number, auto (as many as fit), all (or -1)",
    )
    model.add_argument("--threads", type=int, default=None, help="CPU threads (default: physical cores minus one)")
    model.add_argument("--system_prompt", default=None, help="System prompt for conversations without one")
    model.add_argument("--no_system_prompt", action="store_true", help="Do not add a system prompt")
    model.add_argument(
        "--context_window",
        type=int,
        default=DEFAULT_CONTEXT,
        help="Context length per conversation in tokens, up to the model's own",
    )
    model.add_argument(
        "--limit",
        type=int,
        default=None,
        help="Maximum number of tokens in a prompt (default: the context; three quarters of it for conversations that "
        "are trimmed to it)",
    )
    model.add_argument(
        "--override_chat_template",
        default=None,
        help="A Jinja chat template, the path of a file with one, or a name, for example chatml",
    )
    engine = parser.add_argument_group("Engine Options")
    engine.add_argument(
        "--mmproj", default=None, help="Multimodal projector for images or audio: a path or hf://REPO?FILE"
    )
    engine.add_argument(
        "--lora",
        action="append",
        default=None,
        metavar="FILE[=SCALE]",
        help="LoRA adapter and its scale; repeat for several",
    )
    engine.add_argument("--draft_model", default=None, help="Draft model for speculative decoding (same tokenizer)")
    engine.add_argument("--draft_max", type=int, default=16, help="Maximum number of drafted tokens")
    engine.add_argument(
        "--pooling", choices=POOLINGS, default=None, help="Serve embeddings with this pooling; rank: serve reranking"
    )
    engine.add_argument(
        "--cache_type_k", choices=CACHE_TYPES, default="f16", help="Data type of the keys in the KV cache"
    )
    engine.add_argument(
        "--cache_type_v", choices=CACHE_TYPES, default="f16", help="Data type of the values in the KV cache"
    )
    engine.add_argument("--flash_attn", choices=("auto", "on", "off"), default="auto", help="Flash attention")
    batch = "Logical batch size for prefill, in tokens; embeddings use the whole context"
    ubatch = "Physical batch size, in tokens; embeddings use the whole context"
    engine.add_argument("--batch_size", type=int, default=2048, help=batch)
    engine.add_argument("--ubatch_size", type=int, default=512, help=ubatch)
    engine.add_argument("--main_gpu", type=int, default=0, help="GPU for the parts that are not split")
    engine.add_argument("--tensor_split", default=None, help="Share of each GPU, for example 3,1")
    engine.add_argument(
        "--split_mode", choices=("layer", "row", "none"), default="layer", help="How the model is split across GPUs"
    )
    engine.add_argument(
        "--prompt_cache", default=None, metavar="FOLDER", help="Directory for the prompt cache; survives restarts"
    )
    engine.add_argument(
        "--llama_server",
        default=None,
        metavar="PATH",
        help="Run this llama-server instead of the bundled one; auto: the installed one",
    )


def _layers(text: str) -> int:
    if text == "auto":
        return AUTO_LAYERS
    if text in ("all", "-1"):
        return ALL_LAYERS
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of layers: give a number, auto or all")


def shown_layers(layers: int) -> str:
    return {AUTO_LAYERS: "as many as fit", ALL_LAYERS: "all"}.get(layers, str(layers))


def adapter_of(given: str) -> tuple[str, float]:
    """`FILE=SCALE` in its two parts; without a scale it is 1."""
    scaled = re.fullmatch(r"(.+)=(-?\d*\.?\d+)", given)
    return (scaled[1], float(scaled[2])) if scaled is not None else (given, 1.0)


def shares(given: str | None) -> list[float]:
    """`3,1` as numbers. Raises SetupFailed."""
    try:
        return [float(part) for part in given.split(",")] if given else []
    except ValueError as error:
        raise SetupFailed(f"--tensor_split is {given!r}; write the share of each GPU, such as 3,1") from error


def positive(option: str, value: int | None) -> int:
    """`value`, 0 for None. Raises SetupFailed for a number that cannot be meant."""
    if value is not None and value < 1:
        raise SetupFailed(f"{option} is {value}; it must be at least 1")
    return value or 0


def child_config(
    args: argparse.Namespace,
    files: Files,
    header: GgufHeader,
    *,
    slots: int,
    chat_template: str,
    environment: Mapping[str, str],
) -> ChildConfig:
    """What the child is told. Raises SetupFailed for an option that cannot be meant."""
    embeds = args.pooling is not None or header.pooled
    context = min(positive("--context_window", args.context_window), header.context_length)
    batch, ubatch = positive("--batch_size", args.batch_size), positive("--ubatch_size", args.ubatch_size)
    if embeds and not _pools_last(args, header):
        batch = ubatch = context  # llama.cpp computes a text at once where all of its vectors count
    return ChildConfig(
        model_path=str(files.model),
        context=context,
        slots=slots,
        threads=positive("--threads", args.threads) or machine.threads(),
        gpu_layers=args.ngl,
        batch=batch,
        ubatch=ubatch,
        chat_template=chat_template,
        cache_mib=machine.cache_mib(),
        cache_type_k=args.cache_type_k,
        cache_type_v=args.cache_type_v,
        flash_attention=args.flash_attn,
        main_gpu=args.main_gpu,
        tensor_split=shares(args.tensor_split),
        split_mode=args.split_mode,
        projector=str(files.projector or ""),
        adapters=[Adapter(str(path), scale) for path, scale in files.adapters],
        draft_model=str(files.draft or ""),
        draft_max=positive("--draft_max", args.draft_max),
        embedding=embeds,
        pooling=args.pooling or "",
        slot_folder=_slot_folder(args.prompt_cache),
        server=find_server(args.llama_server, environment),
        verbose=log.isEnabledFor(logging.DEBUG),
        environment={} if args.visible_gpu is None else {"CUDA_VISIBLE_DEVICES": args.visible_gpu},
    )


def _pools_last(args: argparse.Namespace, header: GgufHeader) -> bool:
    return header.pools_last if args.pooling is None else args.pooling == "last"


def _slot_folder(given: str | None) -> str:
    """The folder for conversations, which nobody but its owner may read. Raises SetupFailed."""
    if given is None:
        return ""
    folder = Path(given).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
        if folder.stat().st_mode & OTHERS:
            folder.chmod(PRIVATE_FOLDER)
        for kept in folder.glob(f"*{SLOT_SUFFIX}"):
            kept.chmod(PRIVATE_FILE)
    except OSError as error:
        raise SetupFailed(f"--prompt_cache {given} cannot be made a folder of yours alone: {error.strerror}") from error
    return f"{folder}/"


def find_server(given: str | None, environment: Mapping[str, str]) -> str:
    """The path of the llama-server to run; empty for the one that comes along. Raises SetupFailed."""
    if given is None:
        return ""
    found = shutil.which(SERVER_NAME if given == "auto" else given, path=environment.get("PATH"))
    if found is None:
        where = "no llama-server is on the PATH" if given == "auto" else f"{given} is no program that can be started"
        raise SetupFailed(f"--llama_server {given}: {where}")
    return found


def installed_server(environment: Mapping[str, str]) -> str:
    """A llama-server on the PATH that nobody asked for."""
    return shutil.which(SERVER_NAME, path=environment.get("PATH")) or ""
