"""The command line of `huggingface`, and its table of generation options. Light: `--help` needs no torch."""

from __future__ import annotations

import argparse

from kuwa.executor.media import WEB_CHOICES
from kuwa.executor.options import Option, add_options

ENGINES = ("auto", "slot", "paged", "interleave", "single", "vllm")
DTYPES = ("auto", "float32", "float16", "bfloat16")

PARAMETERS = (
    Option("max_new_tokens", int, "Most tokens of an answer", default=4096, low=1),
    Option("do_sample", bool, "Draw tokens by their probability instead of taking the likeliest", default=False),
    Option("temperature", float, "Randomness of the answer, above 0 tokens are drawn; 0 takes the likeliest", low=0),
    Option("top_p", float, "Draw from the likeliest tokens that together have this probability", low=0, high=1),
    Option("top_k", int, "Draw from this many of the likeliest tokens; 0 for all", low=0),
    Option("min_p", float, "Leave out tokens rarer than this part of the likeliest", low=0, high=1),
    Option("typical_p", float, "Draw from the most typical tokens that together have this probability", low=0, high=1),
    Option("repetition_penalty", float, "Above 1: avoid tokens that already occurred, the prompt included", low=0.01),
    Option("presence_penalty", float, "Above 0: avoid tokens that already occurred in the answer", low=-2, high=2),
    Option("frequency_penalty", float, "Above 0: avoid tokens the more often they occurred", low=-2, high=2),
    Option("logit_bias", dict, 'Make tokens likelier or rarer, by token id: {"1234": -100}'),
    Option("seed", int, "Draw the same way each time"),
    Option("json_schema", dict, "Answer only JSON that keeps to this schema"),
    Option("grammar", str, "Answer only what this grammar allows, GBNF or Lark"),
    Option("regex", str, "Answer only what this regular expression matches"),
    Option("stop", list, "End the answer before this text; repeat for several"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("Model Options")
    model.add_argument("--model_path", default=None, help="A model's folder, or its name on the Hugging Face hub")
    model.add_argument("--visible_gpu", default=None, help="The GPUs to use, as in CUDA_VISIBLE_DEVICES")
    model.add_argument("--tokenizer", default=None, help="Folder or hub name of the tokenizer, if another one")
    model.add_argument("--revision", default=None, help="Branch, tag or commit of the model on the hub")
    model.add_argument("--lora", default=None, help="Folder or hub name of a LoRA adapter to put on the model")
    model.add_argument("--dtype", choices=DTYPES, default="auto", help="Number format of the weights")
    model.add_argument("--load_8bits", action="store_true", help="Load the weights in 8 bits")
    model.add_argument("--load_4bits", action="store_true", help="Load the weights in 4 bits")
    model.add_argument("--offline", action="store_true", help="Use only what is on this machine already")
    model.add_argument(
        "--trust_remote_code", action="store_true", help="Run the code that the model's folder brings along"
    )
    model.add_argument("--system_prompt", default=None, help="The system prompt of conversations without one")
    model.add_argument("--no_system_prompt", action="store_true", help="Put no system prompt before the chat")
    model.add_argument(
        "--override_chat_template", default=None, help="A Jinja chat template, or the path of a file with one"
    )
    model.add_argument(
        "--image_urls",
        choices=WEB_CHOICES,
        default="public",
        help="Fetch images that requests name by URL: from public addresses, from any (private networks too), or never",
    )
    model.add_argument("--limit", type=int, default=3072, help="Most tokens of a prompt")
    model.add_argument("--timeout", type=float, default=10.0, help="Seconds to wait for the next token")
    model.add_argument(
        "--generation_kwargs",
        action="append",
        default=None,
        metavar="KEY=VALUE",
        help="A generation option by its name; repeat for several",
    )
    engine = parser.add_argument_group("Engine Options")
    engine.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="How requests are computed together; vllm: by a vLLM server that is started",
    )
    engine.add_argument("--max_batch_tokens", type=int, default=None, help="Most tokens computed in one step")
    engine.add_argument("--kv_cache_gb", type=float, default=None, help="Memory for the attention cache, in GiB")
    add_options(parser, PARAMETERS)
