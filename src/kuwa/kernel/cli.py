"""The command `kuwa-kernel`: its flags, and how it says that something is wrong.

The server and all it stands on are imported once the flags are sound, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from kuwa import __version__
from kuwa.clash import check_clash
from kuwa.kernel.settings import DEFAULTS, BadSetting, Settings, load

PROGRAM = "kuwa-kernel"
EXIT_USAGE = 2
EXIT_FAILED = 1

EPILOG = """\
Each flag may also be given by an environment variable, KUWA_PORT for --port and so on; a flag wins. Those that
may be repeated hold several values there, separated by blanks. Keys are given by environment variables only.

  kuwa-kernel
  KUWA_UPSTREAM_KEY_GPT=sk-… kuwa-kernel --upstream gpt=https://api.openai.com/v1#gpt-4o

What is served: http://127.0.0.1:9000/v1.0/worker/debug
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is a `--help` away."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message}. See {PROGRAM} --help.")
        raise SystemExit(EXIT_USAGE)


def parser() -> argparse.ArgumentParser:
    """The flags. Their values stay text here: `settings` reads flags and environment by the same rules."""
    it = _Parser(
        prog=PROGRAM,
        description="The front door: it knows which executors are alive, and brings each request to one of them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    it.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    it.add_argument("--host", metavar="HOST", help=f"address to listen on (default: {DEFAULTS.host})")
    it.add_argument("--port", metavar="PORT", help=f"port to listen on, 0 for any free one (default: {DEFAULTS.port})")
    it.add_argument(
        "--log_level",
        metavar="LEVEL",
        help=f"DEBUG, INFO, WARNING, ERROR or CRITICAL, in any case (default: {DEFAULTS.log_level})",
    )
    it.add_argument(
        "--upstream",
        action="append",
        metavar="CODE=BASE_URL[#MODEL]",
        help="offer an OpenAI-compatible server as the model CODE, without an executor; BASE_URL as in an OpenAI "
        "SDK, MODEL its name there if that is not CODE. Its key is read from KUWA_UPSTREAM_KEY_<CODE>, in capitals "
        "and with _ for every other character. May be repeated",
    )
    it.add_argument(
        "--policy",
        action="append",
        metavar="CODE=NAME",
        help="how the executors of the model CODE take turns: least_loaded (the default), prefix (a conversation goes "
        "back to the executor that has computed its beginning, unless that one is much busier than others) or session "
        "(the same for all requests with one X-Session-Id header, prompt_cache_key or user). May be repeated",
    )
    it.add_argument(
        "--allowed_host",
        action="append",
        metavar="NAME",
        help="answer requests sent to this host name, and pages from it, besides localhost. May be repeated",
    )
    it.add_argument(
        "--allowed_executor",
        action="append",
        metavar="HOST",
        help="let executors register endpoints on this host, besides their own address. May be repeated",
    )
    it.add_argument(
        "--insecure_no_auth",
        action="store_const",
        const="1",
        help="listen beyond this machine although there are no access keys: everyone who reaches it may use it",
    )
    it.add_argument(
        "--ca_file", metavar="FILE", help="trust these certificate authorities (PEM) too, for https executors"
    )
    it.add_argument(
        "--drain_s",
        metavar="SECONDS",
        help=f"when stopping, let requests under way run on this long (default: {DEFAULTS.drain_s:g})",
    )
    it.add_argument(
        "--first_token_s",
        metavar="SECONDS",
        help="give an executor up that computes this long without a token or a sign of progress "
        f"(default: {DEFAULTS.first_token_s:g})",
    )
    it.add_argument(
        "--listen_fd",
        metavar="FD",
        help="listen on this inherited socket, which outlives the kernel: who connects during a restart waits for "
        "the next one. systemd's socket activation is understood without it",
    )
    return it


def main() -> None:
    """Entry point. Exit codes: 0 stopped as asked, 1 failed, 2 wrong usage."""
    check_clash()
    flags = parser().parse_args()
    try:
        settings = load(vars(flags))
    except BadSetting as error:
        complain(str(error))
        raise SystemExit(EXIT_USAGE) from None
    raise SystemExit(_run(settings))


def _run(settings: Settings) -> int:
    from kuwa.http.server import CannotListen, run
    from kuwa.kernel.app import serve

    try:
        return run(serve(settings))
    except BadSetting as error:
        complain(str(error))
        return EXIT_USAGE
    except CannotListen as error:
        complain(str(error))
        return EXIT_FAILED


def complain(message: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {message}\n")


if __name__ == "__main__":
    main()
