"""The command `kuwa`. It reads the command line and the environment and hands over to the part that does the work;
that part is imported when it is needed, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

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
    sys.exit(_secrets(args) if args.command == "secrets" else _up(args))


def _secrets(args: argparse.Namespace) -> int:
    from kuwa.fleet import secrets
    from kuwa.wire.secrets import secrets_file

    path = secrets_file(os.environ, Path.home())  # noqa: TID251 - the one place of this program that reads it
    try:
        if args.action == "set":
            given = secrets.given_secret(args.file, args.variable, sys.stdin, args.name)
            said = secrets.set_secret(path, args.name, given)
        else:
            said = secrets.remove_secret(path, args.name) if args.action == "remove" else secrets.listing(path)
    except secrets.SecretsFailed as error:
        return secrets.failed(error)
    sys.stdout.write(said + "\n")
    return 0


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
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
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
    _add_secrets(commands.add_parser("secrets", help="keep API keys for executors", allow_abbrev=False))
    return parser


def _add_secrets(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Keep API keys for the executors that this user starts on this machine, in a file that nobody else can read. "
        "Executors look for openai (chatgpt) and gemini (geminipro)."
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    keep = actions.add_parser(
        "set",
        help="keep a secret; its value is read from standard input or asked for",
        description="Keep a secret. Its value is read from standard input or asked for, never from the command line.",
        allow_abbrev=False,
    )
    keep.add_argument("name", metavar="NAME", help="such as openai or gemini")
    where = keep.add_mutually_exclusive_group()
    where.add_argument("--file", metavar="FILE", help="do not keep the value, but the name of the file that holds it")
    where.add_argument("--variable", metavar="NAME", help="do not keep the value, but the environment variable's name")
    actions.add_parser("list", help="show the names and how each is kept, never a value")
    forget = actions.add_parser("remove", help="forget a secret", allow_abbrev=False)
    forget.add_argument("name", metavar="NAME", help="as kuwa secrets list shows it")


def _port(text: str) -> int:
    if text.isdecimal() and 0 < int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 1 to 65535")


if __name__ == "__main__":
    main()
