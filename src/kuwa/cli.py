"""The command `kuwa`. It reads the command line and the environment and calls the part that does the work. That part is
imported only when needed, so `--help` answers at once."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kuwa import __version__
from kuwa.clash import check_clash
from kuwa.home import DEFAULT_KERNEL_URL, DEFAULT_PORT, folders, language

if TYPE_CHECKING:
    import ssl

    from kuwa.terminal.config import Setting

INTERRUPTED = 130  # the exit code of shells for SIGINT

UP_DESCRIPTION = (
    "Start the kernel and the executors debug, dummy and welcome (a small GGUF model made on this machine), list the "
    "running models, and keep everything running until Ctrl-C."
)
CHAT_DESCRIPTION = (
    "Chat with a model. At a terminal: streaming Markdown, line editing, a history; Ctrl-C stops an answer, Ctrl-D "
    "ends the chat. In a pipe the input is one question and the output is exactly the answer: echo hi | kuwa chat debug"
)
CHAT_EPILOG = (
    "Several lines: end a line with \\ to continue on the next one, or put the text between two marks of three double "
    "quotes; pasted text may have several lines. /help lists the commands of the chat: /system, /model, /save, /clear, "
    "/quit."
)
PS_DESCRIPTION = "List the running models: the address, state, slots and load of each executor."
DOCTOR_DESCRIPTION = (
    "Check this machine and the kernel: versions, memory, disk, extras, the engine, the port, and a real answer. Each "
    "problem comes with its fix. Exit code 1 if something needs fixing."
)


def main() -> None:
    environ = os.environ  # noqa: TID251 - the one place of this program that reads it
    if sys.argv[1:2] != ["doctor"]:  # noqa: TID251 - this is an entry point
        # To the doctor it is a finding among others.
        check_clash()
    args = _parser(environ).parse_args()
    try:
        sys.exit(args.run(args, environ))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _pull(args: argparse.Namespace, environ: Mapping[str, str]) -> NoReturn:
    _become("kuwa.builtin.llamacpp.pull", args.model)


def _models(args: argparse.Namespace, environ: Mapping[str, str]) -> NoReturn:
    own = str(folders(environ, Path.home()).models)
    _become("kuwa.builtin.llamacpp.library", *(["--json"] if args.json else []), own, *args.folder)


def _become(module: str, *arguments: str) -> NoReturn:
    """Go on as another program of Kuwa: this one knows no executor, and starts them by command line."""
    if importlib.util.find_spec("huggingface_hub") is None:
        sys.stderr.write("kuwa: support for GGUF models is not installed. Run: pip install 'kuwa[llamacpp]'\n")
        sys.exit(1)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])  # noqa: S606 - our own module


def _secrets(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from kuwa.fleet import secrets

    path = folders(environ, Path.home()).secrets
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


def _up(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from kuwa.fleet.config import ON_THE_HUB, Settings
    from kuwa.fleet.up import up

    models: list[str] = args.model
    settings = Settings(
        port=args.port,
        models=tuple(
            given if given.startswith(ON_THE_HUB) else str(Path(given).expanduser().absolute()) for given in models
        ),
        defaults=not args.no_defaults,
        folders=folders(environ, Path.home()),
        language=language(environ),
    )
    return up(settings)


def _chat(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from kuwa.terminal.chat import chat

    return chat(_setting(args, environ), args.access_code or "", args.system)


def _ps(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from kuwa.terminal.ps import ps

    return ps(_setting(args, environ), as_json=args.json)


def _doctor(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from kuwa.terminal.doctor import doctor

    return doctor(_setting(args, environ))


def _setting(args: argparse.Namespace, environ: Mapping[str, str]) -> Setting:
    from kuwa.terminal.config import Setting

    return Setting(
        kernel_url=args.kernel_url,
        language=language(environ),
        folders=folders(environ, Path.home()),
        tls=args.ca_file,
    )


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kuwa",
        description="Kuwa: one front door for every language model you have.",
        epilog="The single programs: kuwa-kernel --help, kuwa-executor --list.",
    )
    parser.add_argument("--version", action="version", version=f"kuwa {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    up = commands.add_parser(
        "up", help="start the kernel and models on this machine", description=UP_DESCRIPTION, allow_abbrev=False
    )
    up.set_defaults(run=_up)
    up.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="PATH.gguf",
        help="also serve this GGUF file, or one on the hub: hf://REPO?FILE; may be repeated",
    )
    up.add_argument(
        "--port",
        type=_port,
        default=environ.get("KUWA_PORT") or str(DEFAULT_PORT),
        help="the kernel's port; KUWA_PORT in the environment (default: %(default)s)",
    )
    up.add_argument("--no_defaults", action="store_true", help="do not start debug, dummy and welcome")
    chat = commands.add_parser(
        "chat", help="chat with a model", description=CHAT_DESCRIPTION, epilog=CHAT_EPILOG, allow_abbrev=False
    )
    chat.set_defaults(run=_chat)
    chat.add_argument(
        "access_code",
        nargs="?",
        type=_access_code,
        help="the model (default: the only running one, or a list to choose from)",
    )
    chat.add_argument("--system", default="", metavar="TEXT", help="the system prompt")
    _add_kernel(chat, environ)
    ps = commands.add_parser("ps", help="list running models", description=PS_DESCRIPTION, allow_abbrev=False)
    ps.set_defaults(run=_ps)
    ps.add_argument("--json", action="store_true", help="print the kernel's full report as JSON")
    _add_kernel(ps, environ)
    doctor = commands.add_parser("doctor", help="diagnose problems", description=DOCTOR_DESCRIPTION, allow_abbrev=False)
    doctor.set_defaults(run=_doctor)
    _add_kernel(doctor, environ)
    secrets = commands.add_parser("secrets", help="manage API keys", allow_abbrev=False)
    secrets.set_defaults(run=_secrets)
    _add_secrets(secrets)
    pull = commands.add_parser(
        "pull",
        help="download a GGUF model from the Hugging Face hub",
        description="Download a GGUF model into the Hugging Face cache, verify it, and print the path of the file. "
        "Interrupted downloads resume.",
    )
    pull.add_argument("model", metavar="hf://REPO?FILE")
    pull.set_defaults(run=_pull)
    models = commands.add_parser(
        "models",
        help="list the GGUF models on this machine",
        description="List the GGUF files in the Hugging Face cache, in Kuwa's own folder and in the folders given.",
    )
    models.add_argument("folder", nargs="*", metavar="FOLDER", help="additional folder to search")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.set_defaults(run=_models)
    return parser


def _add_kernel(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    parser.add_argument(
        "--kernel_url",
        type=_kernel_url,
        default=environ.get("KUWA_KERNEL_URL") or DEFAULT_KERNEL_URL,
        metavar="URL",
        help="the kernel's address; KUWA_KERNEL_URL in the environment (default: %(default)s)",
    )
    parser.add_argument(
        "--ca_file",
        type=_authorities,
        default=environ.get("KUWA_CA_FILE") or None,
        metavar="FILE.pem",
        help="additional certificate authorities to trust, for an https kernel; KUWA_CA_FILE in the environment",
    )


def _add_secrets(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Manage API keys for the executors that this user starts on this machine. They are stored in a file that only "
        "this user can read. Executors use openai (chatgpt) and gemini (geminipro)."
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    keep = actions.add_parser(
        "set",
        help="store a secret; its value is read from standard input or a prompt",
        description="Store a secret. Its value is read from standard input or a prompt, never from the command line.",
        allow_abbrev=False,
    )
    keep.add_argument("name", metavar="NAME", help="for example openai or gemini")
    where = keep.add_mutually_exclusive_group()
    where.add_argument("--file", metavar="FILE", help="store the name of a file that contains the value")
    where.add_argument("--variable", metavar="NAME", help="store the name of an environment variable")
    actions.add_parser("list", help="list the names and where each value is stored, never a value")
    forget = actions.add_parser("remove", help="delete a secret", allow_abbrev=False)
    forget.add_argument("name", metavar="NAME", help="as kuwa secrets list shows it")


def _port(text: str) -> int:
    if text.isdecimal() and 0 < int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a valid port (must be 1-65535)")


def _access_code(text: str) -> str:
    from kuwa.wire.errors import InvalidRequest
    from kuwa.wire.names import check_access_code

    try:
        return check_access_code(text)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(error.message) from error


def _kernel_url(text: str) -> str:
    """The address without the `/` or the `/v1` that OpenAI clients want at its end."""
    from urllib.parse import urlsplit

    url = text.rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not url.isascii() or not url.isprintable() or " " in url:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid address (for example {DEFAULT_KERNEL_URL})")
    return url


def _authorities(path: str) -> ssl.SSLContext:
    from kuwa.http.upstream import tls_context

    try:
        return tls_context(path)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} contains no certificates in PEM format ({error})") from error


if __name__ == "__main__":
    main()
