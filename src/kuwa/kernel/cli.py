"""The command `kuwa-kernel`: its flags and its error messages.

The server and its dependencies are imported after the flags have been checked, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from kuwa import __version__
from kuwa.clash import check_clash
from kuwa.home import DEFAULT_KERNEL_URL
from kuwa.kernel.settings import SETTINGS, BadSetting, Settings, load

PROGRAM = "kuwa-kernel"
EXIT_USAGE = 2
EXIT_FAILED = 1

EPILOG = f"""\
Each flag can also be set by an environment variable, KUWA_PORT for --port and so on; a flag wins. For flags that
may be repeated, separate the values by blanks. Keys are read from environment variables only.

  kuwa-kernel
  KUWA_UPSTREAM_KEY_GPT=sk-… kuwa-kernel --upstream gpt=https://api.openai.com/v1#gpt-4o

Status page: {DEFAULT_KERNEL_URL}/v1.0/worker/debug
"""


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message}. See {PROGRAM} --help.")
        raise SystemExit(EXIT_USAGE)


def parser() -> argparse.ArgumentParser:
    """The flags. Their values stay text: `settings` reads flags, environment and file by the same rules."""
    it = _Parser(
        prog=PROGRAM,
        description="The gateway: tracks the executors and routes each request to one of them.",
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
    """Entry point. Exit codes: 0 stopped on request, 1 failed, 2 wrong usage."""
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
