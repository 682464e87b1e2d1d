"""The command `kuwa`. It reads the command line and the environment and hands over to the part that does the work;
that part is imported when it is needed, so that `--help` answers at once."""

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

if TYPE_CHECKING:
    import ssl

    from kuwa.terminal.config import Setting

DEFAULT_PORT = "9000"
DEFAULT_KERNEL_URL = "http://127.0.0.1:9000"
INTERRUPTED = 130  # what a shell makes of SIGINT

UP_DESCRIPTION = (
    "Start the kernel and, beside it, the executors debug, dummy and welcome (a small GGUF model made on this "
    "machine), show what is served, and keep it running until Ctrl-C."
)
CHAT_DESCRIPTION = (
    "Talk to a model. At a terminal: Markdown as it comes, line editing, a history; Ctrl-C stops an answer, Ctrl-D "
    "ends. In a pipe the input is one question and the output is exactly the answer: echo hi | kuwa chat debug"
)
CHAT_EPILOG = (
    "Several lines: end a line with \\ to go on in the next one, or put the text between two marks of three double "
    "quotes; what is pasted may have several lines as it is. /help shows the commands of the conversation: /system, "
    "/model, /save, /clear, /quit."
)
PS_DESCRIPTION = "Show what the kernel serves: where each executor is, its state, its slots and its load."
DOCTOR_DESCRIPTION = (
    "Look at this machine and its kernel: versions, memory, disk, extras, the engine, the port, and a real answer. "
    "Each finding says what to do. Exit code 1 where something needs doing."
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
    from kuwa.fleet.config import folders

    own = str(folders(environ, Path.home()).models)
    _become("kuwa.builtin.llamacpp.library", *(["--json"] if args.json else []), own, *args.folder)


def _become(module: str, *arguments: str) -> NoReturn:
    """Go on as another program of Kuwa: this one knows no executor, and starts them by command line."""
    if importlib.util.find_spec("huggingface_hub") is None:
        sys.stderr.write("kuwa: this needs the parts for GGUF models; install them: pip install 'kuwa[llamacpp]'\n")
        sys.exit(1)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])  # noqa: S606 - our own module


def _secrets(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from kuwa.fleet import secrets
    from kuwa.wire.secrets import secrets_file

    path = secrets_file(environ, Path.home())
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
    from kuwa.fleet.config import ON_THE_HUB, Settings, folders, language
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
    from kuwa.fleet.config import folders, language
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
        epilog="The parts by themselves: kuwa-kernel --help, kuwa-executor --list.",
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
        help="serve this GGUF file too, or one of the hub: hf://REPO?FILE; may be repeated",
    )
    up.add_argument(
        "--port",
        type=_port,
        default=environ.get("KUWA_PORT") or DEFAULT_PORT,
        help="the kernel's port; KUWA_PORT in the environment (default: %(default)s)",
    )
    up.add_argument("--no_defaults", action="store_true", help="start neither debug, dummy nor welcome")
    chat = commands.add_parser(
        "chat", help="talk to a model", description=CHAT_DESCRIPTION, epilog=CHAT_EPILOG, allow_abbrev=False
    )
    chat.set_defaults(run=_chat)
    chat.add_argument(
        "access_code",
        nargs="?",
        type=_access_code,
        help="the model; without it the only one that is served, or a list to choose from",
    )
    chat.add_argument("--system", default="", metavar="TEXT", help="the system prompt")
    _add_kernel(chat, environ)
    ps = commands.add_parser("ps", help="show what is served", description=PS_DESCRIPTION, allow_abbrev=False)
    ps.set_defaults(run=_ps)
    ps.add_argument("--json", action="store_true", help="for programs: everything the kernel reports")
    _add_kernel(ps, environ)
    doctor = commands.add_parser(
        "doctor", help="say what is wrong here, and what to do", description=DOCTOR_DESCRIPTION, allow_abbrev=False
    )
    doctor.set_defaults(run=_doctor)
    _add_kernel(doctor, environ)
    secrets = commands.add_parser("secrets", help="keep API keys for executors", allow_abbrev=False)
    secrets.set_defaults(run=_secrets)
    _add_secrets(secrets)
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
        help="authorities to trust beside the system's, for an https kernel; KUWA_CA_FILE in the environment",
    )


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
        raise argparse.ArgumentTypeError(f"{text!r} is no address: give one such as {DEFAULT_KERNEL_URL}")
    return url


def _authorities(path: str) -> ssl.SSLContext:
    from kuwa.http.upstream import tls_context

    try:
        return tls_context(path)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} holds no certificates in PEM form ({error})") from error


if __name__ == "__main__":
    main()
