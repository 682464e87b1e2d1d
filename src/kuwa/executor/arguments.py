"""The command line every executor has: the parser, the general options, and the settings read from them.

`LLMExecutor.__init__` builds the parser here, lets the executor extend it, and parses. The help text begins as the
Kuwa documentation shows it; options that were added to the general ones since stand in a group of their own
behind it and not in the usage line.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from kuwa.home import DEFAULT_KERNEL_URL
from kuwa.wire.errors import InvalidRequest
from kuwa.wire.names import check_access_code

DESCRIPTION = "LLM model executor, Please make sure your kernel is working before use."
LOG_LEVELS = ("NOTSET", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
KERNEL_URL = DEFAULT_KERNEL_URL + "/"
OWN_PATHS = ("/v1/", "/health", "/metrics")

# Options of ours are kept under names that no executor's own option can have.
_OURS = "kuwa_"


class UsageError(Exception):
    """The command line cannot be followed; the message says which option and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The general options, validated. `host` and `port` are None where the framework is to choose."""

    access_codes: tuple[str, ...] = ()
    version: str = "v1.0"
    ignore_kernel: bool = False
    https: bool = False
    host: str | None = None
    port: int | None = None
    executor_path: str = "/chat"
    kernel_url: str = KERNEL_URL
    log: str = "INFO"
    concurrency: int = 1
    trim_history: bool = False
    allowed_hosts: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    ca_file: Path | None = None


class ExecutorParser(argparse.ArgumentParser):
    """argparse with the mission's wording, one-line errors, and options that the usage line leaves out."""

    def __init__(self, prog: str) -> None:
        # Python 3.14 colours by itself; what a terminal shows is decided in `_formatter` alone.
        plain: dict[str, Any] = {"color": False} if sys.version_info >= (3, 14) else {}
        super().__init__(prog=prog, description=DESCRIPTION, formatter_class=_formatter(), allow_abbrev=False, **plain)
        self._optionals.title = "optional arguments"
        self.unlisted: set[str] = set()

    def takes(self, option: str) -> bool:
        return option in self._option_string_actions

    def format_usage(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._listed(), self._mutually_exclusive_groups)
        return formatter.format_help()

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._listed(), self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def _listed(self) -> list[argparse.Action]:
        return [action for action in self._actions if action.dest not in self.unlisted]

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Like `parse_args`; an unknown option is named together with the one that was perhaps meant."""
        found, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(f"unknown option {unknown[0]}{self._nearest(unknown[0])}")
        return found

    def _nearest(self, option: str) -> str:
        near = difflib.get_close_matches(option.partition("=")[0], self._option_string_actions, n=1)
        return f", did you mean {near[0]}?" if near else ""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _EffectiveDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to the help of an option, unless it has none or its text names the default that applies."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if action.default in (None, "", []) or "(default:" in text:
            return text
        return super()._get_help_string(action)


def _formatter() -> Any:
    """Plain argparse in a pipe; colours on a terminal."""
    if not sys.stdout.isatty():
        return _EffectiveDefaults
    from rich_argparse import RichHelpFormatter

    class Coloured(_EffectiveDefaults, RichHelpFormatter):
        """The same on a terminal."""

    return Coloured


def general_options(parser: ExecutorParser, environment: Mapping[str, str], name: str) -> None:
    """The options of the mission's help, in its order and its words. `name` is the access code that applies where the
    command line gives none."""
    group = parser.add_argument_group("General Options")
    shown = f" (default: {name})".replace("%", "%%") if name else ""
    group.add_argument("--access_code", action="append", default=None, help=f"Access code{shown}")
    group.add_argument("--version", default="v1.0", help="Version of the executor interface")
    group.add_argument("--ignore_kernel", action="store_true", help="Ignore kernel")
    group.add_argument("--https", action="store_true", help="Register the executor endpoint with https scheme")
    group.add_argument(
        "--host",
        default=None,
        help="The hostname or IP address that will be stored in Kernel, "
        "Make sure the location are accessible by Kernel",
    )
    group.add_argument(
        "--port",
        type=int,
        default=None,
        help="The port to serve. By choosing None, it'll assign an unused port",
    )
    group.add_argument("--executor_path", default="/chat", help="The path this model executor is going to use")
    group.add_argument(
        "--kernel_url",
        default=environment.get("KUWA_KERNEL_URL", KERNEL_URL),
        help="Base URL of Kernel's executor management API",
    )
    group.add_argument(
        "--log",
        type=str.upper,
        choices=LOG_LEVELS,
        default=environment.get("KUWA_LOG", "INFO").upper(),
        help="The logging level.",
    )


def further_options(parser: ExecutorParser, environment: Mapping[str, str], concurrency: int) -> None:
    """The options added since. One whose name the executor has already taken for its own is left to it."""
    group = parser.add_argument_group("Further General Options")

    def add(*names: str, **how: Any) -> None:
        free = [name for name in names if not parser.takes(name)]
        if free:
            bare = names[0].removeprefix("--")
            if how.get("action") != "store_true":
                how["metavar"] = how.get("metavar", bare.upper())
            parser.unlisted.add(_OURS + bare)
            group.add_argument(*free, dest=_OURS + bare, **how)

    add(
        "--concurrency",
        "--concurrent_req_limit",
        type=int,
        default=concurrency,
        metavar="N",
        help="Concurrency limit; further requests are rejected with 429",
    )
    add(
        "--trim_history",
        action="store_true",
        help="Drop the oldest turns of a conversation that is too long, for OpenAI clients too",
    )
    add(
        "--allowed_host",
        action="append",
        default=None,
        metavar="HOST",
        help="Additional host name that clients may use for this executor; repeat for several",
    )
    add("--tls_cert", default=None, metavar="FILE", help="Certificate chain to serve TLS with (PEM)")
    add("--tls_key", default=None, metavar="FILE", help="Private key of --tls_cert (PEM)")
    add(
        "--ca_file",
        default=environment.get("KUWA_CA_FILE"),
        metavar="FILE",
        help="Certificate authorities to verify an https kernel with (PEM)",
    )


def read_settings(args: argparse.Namespace, concurrency: int) -> Settings:
    """The parsed general options as `Settings`. Raises UsageError naming the option at fault."""

    def ours(name: str, default: Any = None) -> Any:
        return getattr(args, _OURS + name, default)

    limit = ours("concurrency", concurrency)
    if limit < 1:
        raise UsageError(f"--concurrency is {limit}; it must be at least 1")
    if args.port is not None and not 0 <= args.port <= 65535:
        raise UsageError(f"--port is {args.port}; a port lies between 0 and 65535")
    if bool(ours("tls_cert")) != bool(ours("tls_key")):
        raise UsageError("--tls_cert and --tls_key belong together; give both")
    return Settings(
        access_codes=_access_codes(args.access_code),
        version=_version(args.version),
        ignore_kernel=args.ignore_kernel,
        https=args.https,
        host=args.host,
        port=args.port or None,
        executor_path=_path(args.executor_path),
        kernel_url=_kernel_url(args.kernel_url),
        log=args.log,
        concurrency=limit,
        trim_history=bool(ours("trim_history", False)),
        allowed_hosts=tuple(ours("allowed_host") or ()),
        tls_cert=_file("--tls_cert", ours("tls_cert")),
        tls_key=_file("--tls_key", ours("tls_key")),
        ca_file=_file("--ca_file", ours("ca_file")),
    )


def _access_codes(given: Sequence[str] | None) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(check_access_code(code) for code in given or ()))
    except InvalidRequest as error:
        raise UsageError(f"--access_code: {error.message}") from error


def _version(version: str) -> str:
    stripped = version.strip("/")
    if not stripped or any(c.isspace() or c in "?#" for c in stripped):
        raise UsageError(f"--version is {version!r}; it is a part of the kernel's paths such as v1.0")
    return stripped


def _path(path: str) -> str:
    normal = "/" + path.strip("/")
    if normal == "/" or any(c.isspace() or c in "?#" for c in normal):
        raise UsageError(f"--executor_path is {path!r}; it is a path such as /chat")
    if any((normal + "/").startswith(own.rstrip("/") + "/") for own in OWN_PATHS):
        raise UsageError(
            f"--executor_path {normal} is taken by the executor's own routes; choose another such as /chat"
        )
    return normal


def _kernel_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound:
        raise UsageError(f"--kernel_url is {url!r}; it looks like {KERNEL_URL}")
    return url if url.endswith("/") else url + "/"


def _file(option: str, name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name)
    if not path.is_file() or not os.access(path, os.R_OK):
        raise UsageError(f"{option}: the file {name} cannot be read")
    return path
