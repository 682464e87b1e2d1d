"""The command `kuwa`. It reads the command line and the environment and hands over to the part that does the work;
that part is imported when it is needed, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import NoReturn

from kuwa import __version__
from kuwa.clash import check_clash

DEFAULT_PORT = 9000

UP_DESCRIPTION = (
    "Start the kernel and, beside it, the executors debug, dummy and welcome (a small GGUF model made on this "
    "machine), show what is served, and keep it running until Ctrl-C."
)


def main() -> None:
    check_clash()
    args = _parser().parse_args()
    sys.exit(args.run(args))


def _pull(args: argparse.Namespace) -> NoReturn:
    _become("kuwa.builtin.llamacpp.pull", args.model)


def _models(args: argparse.Namespace) -> NoReturn:
    from kuwa.fleet.config import folders

    environ = os.environ  # noqa: TID251 - the one place of this program that reads it; kuwa.fleet.config interprets it
    own = str(folders(environ, Path.home()).models)
    _become("kuwa.builtin.llamacpp.library", *(["--json"] if args.json else []), own, *args.folder)


def _become(module: str, *arguments: str) -> NoReturn:
    """Go on as another program of Kuwa: this one knows no executor, and starts them by command line."""
    if importlib.util.find_spec("huggingface_hub") is None:
        sys.stderr.write("kuwa: this needs the parts for GGUF models; install them: pip install 'kuwa[llamacpp]'\n")
        sys.exit(1)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])  # noqa: S606 - our own module


def _up(args: argparse.Namespace) -> int:
    from kuwa.fleet.config import Settings, folders, language
    from kuwa.fleet.up import up

    environ = os.environ  # noqa: TID251 - the one place of this program that reads it; kuwa.fleet.config interprets it
    models: list[Path] = args.model
    settings = Settings(
        port=args.port,
        models=tuple(path.expanduser().absolute() for path in models),
        defaults=not args.no_defaults,
        folders=folders(environ, Path.home()),
        language=language(environ),
    )
    return up(settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kuwa",
        description="Kuwa: one front door for every language model you have.",
        epilog="The parts by themselves: kuwa-kernel --help, kuwa-executor --list.",
    )
    parser.add_argument("--version", action="version", version=f"kuwa {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    up = commands.add_parser(
        "up", help="start the kernel and models on this machine", description=UP_DESCRIPTION, allow_abbrev=False
    )
    up.add_argument(
        "--model",
        action="append",
        type=Path,
        default=[],
        metavar="PATH.gguf",
        help="serve this GGUF file too; may be repeated",
    )
    up.add_argument("--port", type=_port, default=DEFAULT_PORT, help="the kernel's port (default: %(default)s)")
    up.add_argument("--no_defaults", action="store_true", help="start neither debug, dummy nor welcome")
    up.set_defaults(run=_up)
    pull = commands.add_parser(
        "pull",
        help="download a GGUF model from the Hugging Face hub",
        description="Download a GGUF model into the Hugging Face cache, with its checksum compared. A download that "
        "was cut off goes on where it was. The path of the file is printed.",
    )
    pull.add_argument("model", metavar="hf://REPO?FILE")
    pull.set_defaults(run=_pull)
    models = commands.add_parser(
        "models",
        help="list the GGUF models on this machine",
        description="List the GGUF files in the Hugging Face cache, in Kuwa's own folder and in the folders given.",
    )
    models.add_argument("folder", nargs="*", metavar="FOLDER", help="a further folder to look in")
    models.add_argument("--json", action="store_true", help="as JSON, for programs")
    models.set_defaults(run=_models)
    return parser


def _port(text: str) -> int:
    if text.isdecimal() and 0 < int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 1 to 65535")


if __name__ == "__main__":
    main()
