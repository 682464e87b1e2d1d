"""A program that takes llama-server's command line and runs the real llama.cpp behind it, by the xllamacpp package.

It stands for a llama-server that somebody built for their machine. An option that the real one does not have, or
that is not used here, ends it with an error, as there.
"""

from __future__ import annotations

import argparse
import os
import time

import xllamacpp

IGNORED = (
    *("--threads-batch", "--batch-size", "--ubatch-size", "--cache-type-k", "--cache-type-v", "--flash-attn"),
    *("--cache-ram", "--split-mode", "--main-gpu", "--n-gpu-layers"),
)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("--model", "--host", *IGNORED):
        parser.add_argument(name)
    for name in ("--port", "--parallel", "--ctx-size", "--threads"):
        parser.add_argument(name, type=int)
    for name in ("--jinja", "--no-webui", "--slots"):
        parser.add_argument(name, action="store_true")
    args = parser.parse_args()
    parameters = xllamacpp.CommonParams()
    parameters.model.path = args.model
    parameters.hostnames = [args.host]
    parameters.port = args.port
    parameters.api_keys = [os.environ["LLAMA_API_KEY"]]
    parameters.n_parallel, parameters.n_ctx = args.parallel, args.ctx_size
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = args.threads
    parameters.use_jinja = args.jinja
    server = xllamacpp.Server(parameters)
    while server.listening_address:
        time.sleep(3600)


if __name__ == "__main__":
    main()
