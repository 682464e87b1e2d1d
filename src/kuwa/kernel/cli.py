"""The command `kuwa-kernel`: its flags, and how it says that something is wrong.

The server and all it stands on are imported once the flags are sound, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from kuwa import __version__
from kuwa.clash import check_clash
from kuwa.kernel.settings import SETTINGS, BadSetting, Settings, load

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
    for setting in SETTINGS:
        text = setting.described.replace("%", "%%")
        if not setting.metavar:
            it.add_argument(setting.flag, action="store_const", const="1", help=text)
        else:
            action = "append" if setting.repeated else "store"
            it.add_argument(setting.flag, action=action, metavar=setting.metavar, help=text)
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
