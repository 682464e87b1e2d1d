"""The command line of `huggingface`, and its table of generation options. Light: `--help` needs no torch."""

from __future__ import annotations

import argparse

from kuwa.executor.media import WEB_CHOICES
from kuwa.executor.options import Option, add_options

ENGINES = ("auto", "slot", "paged", "interleave", "single", "vllm")
DTYPES = ("auto", "float32", "float16", "bfloat16")

PARAMETERS = (
    Option("max_new_tokens", int, "Maximum number of tokens to generate", default=4096, low=1),
    Option("do_sample", bool, "Sample tokens instead of always taking the most likely one", default=False),
    Option("temperature", float, "Sampling temperature; 0: always the most likely token", low=0),
    Option("top_p", float, "Sample from the most likely tokens, up to this total probability", low=0, high=1),
    Option("top_k", int, "Sample from this many of the most likely tokens; 0: all", low=0),
    Option("min_p", float, "Minimum token probability, relative to the most likely token", low=0, high=1),
    Option("typical_p", float, "Locally typical sampling, up to this total probability; 1: off", low=0, high=1),
    Option("repetition_penalty", float, "Repetition penalty, including the prompt; 1: off", low=0.01),
    Option("presence_penalty", float, "Penalty for tokens that already occurred in the answer", low=-2, high=2),
    Option("frequency_penalty", float, "Penalty for tokens that grows with each occurrence", low=-2, high=2),
    Option("logit_bias", dict, 'Bias added to the logits of tokens, by token id: {"1234": -100}'),
    Option("seed", int, "Random seed, for reproducible output"),
    Option("json_schema", dict, "JSON schema that the answer must match"),
    Option("grammar", str, "Grammar that the answer must match, GBNF or Lark"),
    Option("regex", str, "Regular expression that the answer must match"),
    Option("stop", list, "Stop before this text; repeat for several"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("Model Options")
    model.add_argument("--model_path", default=None, help="A model's folder, or its name on the Hugging Face hub")
    model.add_argument("--visible_gpu", default=None, help="The GPUs to use, as in CUDA_VISIBLE_DEVICES")
    model.add_argument("--tokenizer", default=None, help="Folder or hub name of the tokenizer (default: the model's)")
    model.add_argument("--revision", default=None, help="Branch, tag or commit of the model on the hub")
    model.add_argument("--lora", default=None, help="Folder or hub name of a LoRA adapter to apply")
    model.add_argument("--dtype", choices=DTYPES, default="auto", help="Data type of the weights")
    model.add_argument("--load_8bits", action="store_true", help="Quantize the weights to 8 bits")
    model.add_argument("--load_4bits", action="store_true", help="Quantize the weights to 4 bits")
    model.add_argument("--offline", action="store_true", help="Use only files that are already on this machine")
    model.add_argument("--trust_remote_code", action="store_true", help="Run the code that the model's folder contains")
    model.add_argument("--system_prompt", default=None, help="System prompt for conversations without one")
    model.add_argument("--no_system_prompt", action="store_true", help="Do not add a system prompt")
    model.add_argument(
        "--override_chat_template", default=None, help="A Jinja chat template, or the path of a file with one"
    )
    model.add_argument(
        "--image_urls",
        choices=WEB_CHOICES,
        default="public",
        help="Fetch images that requests name by URL: from public addresses, from any (private networks too), or never",
    )
    model.add_argument("--limit", type=int, default=3072, help="Maximum number of tokens in a prompt")
    model.add_argument("--timeout", type=float, default=10.0, help="Timeout for the next token in seconds")
    model.add_argument(
        "--generation_kwargs",
        action="append",
        default=None,
        metavar="KEY=VALUE",
        help="Set a generation option by name; repeat for several",
    )
    engine = parser.add_argument_group("Engine Options")
    engine.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="How requests are batched; vllm: start a vLLM server for them",
    )
    engine.add_argument(
        "--max_batch_tokens", type=int, default=None, help="Maximum number of tokens computed in one step"
    )
    engine.add_argument("--kv_cache_gb", type=float, default=None, help="Memory for the attention cache, in GiB")
    add_options(parser, PARAMETERS)
