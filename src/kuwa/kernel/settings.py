"""The kernel's settings: one table, `SETTINGS`, and the values that are in force.

A flag wins over the environment (`KUWA_*`), the environment over a file, a file over the default. `cli` makes its
flags of the table and calls `load`; every other part receives what it needs from `Settings`. No other module of the
kernel reads the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar, cast
from urllib.parse import urlsplit

from kuwa.home import DEFAULT_HOST, DEFAULT_PORT
from kuwa.kernel.policy import POLICIES, PolicyName
from kuwa.kernel.trust import may_listen
from kuwa.wire.errors import InvalidRequest
from kuwa.wire.names import check_access_code

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
MAX_DRAIN_S = 86_400.0

T = TypeVar("T")


class BadSetting(Exception):
    """A setting that is not valid. The message is one line: the flag, variable or key, the error, and the fix."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server that the kernel offers under `access_code`: `base_url` as in an OpenAI SDK.

    `model` is its name there, empty where it is the access code; `key` is its API key, empty for none.
    """

    access_code: str
    base_url: str
    model: str = ""
    key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Setting(Generic[T]):
    """One thing that can be set: as the flag `--name`, the variable `KUWA_NAME`, or the key `name` of a file.

    `read` makes a value of the text and raises ValueError for one that is not valid. A setting that is `repeated`
    collects several values; in the environment they are separated by blanks. A flag without a `metavar` takes no
    value and stands for "1".
    """

    name: str
    read: Callable[[str], T]
    default: T
    help: str
    metavar: str = ""
    repeated: bool = False

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        return f"KUWA_{self.name.upper()}"

    @property
    def described(self) -> str:
        """The help text, with the default where there is one worth naming."""
        text = f"{self.help}. May be repeated" if self.repeated else self.help
        if self.repeated or self.default in ("", False, NO_SOCKET):
            return text
        default = f"{self.default:g}" if isinstance(self.default, float) else str(self.default)
        return f"{text} (default: {default})"


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError("port must be 0-65535 (0: any free port)")
    return int(text)


def _log_level(text: str) -> str:
    level = text.upper()
    if level not in LOG_LEVELS:
        raise ValueError(f"unknown log level (choose from {', '.join(LOG_LEVELS)})")
    return level


def _switch(text: str) -> bool:
    value = text.lower()
    if value not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError("must be 1 or 0")
    return value in ("1", "true", "yes", "on")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_DRAIN_S:
        raise ValueError(f"must be 0-{MAX_DRAIN_S:g} seconds")
    return seconds


def _descriptor(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= 3):
        raise ValueError("file descriptor must be 3 or higher")
    return int(text)


def _readable_file(text: str) -> str:
    if not Path(text).is_file():
        raise ValueError("file not found")
    return text


NO_SOCKET = -1

HOST = Setting("host", str, DEFAULT_HOST, "address to listen on", "HOST")
PORT = Setting("port", _port, DEFAULT_PORT, "port to listen on; 0 for any free port", "PORT")
LOG_LEVEL = Setting("log_level", _log_level, "INFO", "DEBUG, INFO, WARNING, ERROR or CRITICAL, in any case", "LEVEL")
UPSTREAM = Setting(
    "upstream",
    str,
    "",
    "offer an OpenAI-compatible server as the model CODE, without an executor; BASE_URL as in an OpenAI "
    "SDK, MODEL its name there if that is not CODE. Its key is read from KUWA_UPSTREAM_KEY_<CODE>, in capitals "
    "and with _ for every other character",
    "CODE=BASE_URL[#MODEL]",
    repeated=True,
)
POLICY = Setting(
    "policy",
    str,
    "",
    "how requests are routed to the executors of the model CODE: least_loaded (default), prefix (to the executor "
    "that already has the conversation's prefix cached, unless it is much busier than others) or session (all requests "
    "with the same X-Session-Id header, prompt_cache_key or user to one executor)",
    "CODE=NAME",
    repeated=True,
)
ALLOWED_HOST = Setting(
    "allowed_host",
    str,
    "",
    "accept requests for this host name, and from its pages, in addition to localhost",
    "NAME",
    repeated=True,
)
ALLOWED_EXECUTOR = Setting(
    "allowed_executor",
    str,
    "",
    "let executors register endpoints on this host, in addition to their own address",
    "HOST",
    repeated=True,
)
INSECURE_NO_AUTH = Setting(
    "insecure_no_auth",
    _switch,
    False,
    "listen on other addresses than localhost without access keys: everyone who can connect may use every model",
)
CA_FILE = Setting(
    "ca_file", _readable_file, "", "additional certificate authorities (PEM) to trust, for https executors", "FILE"
)
DRAIN_S = Setting(
    "drain_s", _seconds, 60.0, "time that requests in progress have to finish when the kernel stops", "SECONDS"
)
FIRST_TOKEN_S = Setting(
    "first_token_s",
    _seconds,
    120.0,
    "fail over if an executor produces no token or progress for this long",
    "SECONDS",
)
LISTEN_FD = Setting(
    "listen_fd",
    _descriptor,
    NO_SOCKET,
    "listen on this inherited socket, which outlives the kernel: connections made during a restart wait for the new "
    "process. systemd's socket activation needs no flag",
    "FD",
)

SETTINGS: tuple[Setting[str] | Setting[int] | Setting[float] | Setting[bool], ...] = (
    HOST,
    PORT,
    LOG_LEVEL,
    UPSTREAM,
    POLICY,
    ALLOWED_HOST,
    ALLOWED_EXECUTOR,
    INSECURE_NO_AUTH,
    CA_FILE,
    DRAIN_S,
    FIRST_TOKEN_S,
    LISTEN_FD,
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The values in force. `drain_s` is how long a stopping kernel lets its requests run on; `first_token_s` how long
    a replica may give no sign of computing before the first token; `listen_fd` a listening socket that the kernel
    inherits, NO_SOCKET for none.
    """

    host: str = HOST.default
    port: int = PORT.default
    log_level: str = LOG_LEVEL.default
    upstreams: tuple[Upstream, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_executors: tuple[str, ...] = ()
    insecure_no_auth: bool = INSECURE_NO_AUTH.default
    policies: Mapping[str, PolicyName] = field(default_factory=dict[str, PolicyName])
    ca_file: str = CA_FILE.default
    drain_s: float = DRAIN_S.default
    first_token_s: float = FIRST_TOKEN_S.default
    listen_fd: int = LISTEN_FD.default


def load(
    flags: Mapping[str, object],
    environ: Mapping[str, str] | None = None,
    file: Mapping[str, object] | None = None,
) -> Settings:
    """Settings from parsed flags (None or an empty list where not given), the environment, and the keys of a file.

    Raises BadSetting.
    """
    env = os.environ if environ is None else environ  # noqa: TID251 - the one place of the kernel that reads it
    source = _Source(flags, env, file or {})
    settings = Settings(
        host=source.one(HOST),
        port=source.one(PORT),
        log_level=source.one(LOG_LEVEL),
        upstreams=tuple(parse_upstream(text, env) for text in source.many(UPSTREAM)),
        allowed_hosts=tuple(source.many(ALLOWED_HOST)),
        allowed_executors=tuple(source.many(ALLOWED_EXECUTOR)),
        insecure_no_auth=source.one(INSECURE_NO_AUTH),
        policies=parse_policies(source.many(POLICY)),
        ca_file=source.one(CA_FILE),
        drain_s=source.one(DRAIN_S),
        first_token_s=source.one(FIRST_TOKEN_S),
        listen_fd=source.one(LISTEN_FD, _activated(env)),
    )
    if not may_listen(settings.host, insecure_no_auth=settings.insecure_no_auth):
        raise BadSetting(
            f"--host {settings.host}: this kernel has no access keys, so everyone who can connect to it could use "
            "every model. Keep --host 127.0.0.1, or add --insecure_no_auth to allow it."
        )
    return settings


def parse_upstream(text: str, environ: Mapping[str, str]) -> Upstream:
    """Read `CODE=BASE_URL[#MODEL]`; its key is in `environ`. Raises BadSetting."""
    found = re.fullmatch(r"(.+?)=(https?://[^#]+)(?:#(.+))?", text)
    if found is None:
        raise BadSetting(
            f"--upstream {text}: must be CODE=BASE_URL or CODE=BASE_URL#MODEL, for example "
            "gpt=https://api.openai.com/v1#gpt-4o."
        )
    code, url, model = found.group(1), found.group(2).rstrip("/"), found.group(3) or ""
    try:
        check_access_code(code)
        parts = urlsplit(url)
        sound = bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc and not parts.query
    except InvalidRequest as error:
        raise BadSetting(f"--upstream {text}: {error.message}") from error
    except ValueError as error:
        raise BadSetting(f"--upstream {text}: {error}.") from error
    if not (sound and url.isascii() and url.isprintable() and " " not in url):
        raise BadSetting(
            f"--upstream {code}: its URL must not contain spaces, a user name, a password or a query. "
            f"Give the key in the environment variable {key_variable(code)}."
        )
    key = environ.get(key_variable(code), "").strip()
    if not (key.isascii() and key.isprintable()):
        raise BadSetting(f"{key_variable(code)} contains characters that are not valid in a key.")
    return Upstream(code, url, model, key)


def parse_policies(texts: Sequence[str]) -> dict[str, PolicyName]:
    """Read each `CODE=NAME`: the policy that chooses among the replicas of an access code. Raises BadSetting."""
    policies: dict[str, PolicyName] = {}
    for text in texts:
        code, _, given = text.rpartition("=")
        name: PolicyName | None = next((policy for policy in POLICIES if policy == given), None)
        if not code:
            raise BadSetting(f"--policy {text}: must be CODE=NAME, for example llama=prefix.")
        if name is None:
            raise BadSetting(f"--policy {text}: unknown policy {given!r} (choose from {', '.join(POLICIES)}).")
        try:
            check_access_code(code)
        except InvalidRequest as error:
            raise BadSetting(f"--policy {text}: {error.message}") from error
        if policies.setdefault(code, name) != name:
            raise BadSetting(f"--policy {text}: {code} already has the policy {policies[code]}; give only one.")
    return policies


def key_variable(access_code: str) -> str:
    """The environment variable that holds an upstream's key; `_` replaces every character but A-Z and 0-9."""
    return "KUWA_UPSTREAM_KEY_" + re.sub(r"[^A-Z0-9]", "_", access_code.upper())


class _Source:
    """Looks a setting up among the flags, then in the environment, then in the file."""

    def __init__(self, flags: Mapping[str, object], environ: Mapping[str, str], file: Mapping[str, object]) -> None:
        unknown = next((key for key in file if key not in {setting.name for setting in SETTINGS}), None)
        if unknown is not None:
            raise BadSetting(f"unknown setting {unknown!r} (choose from {', '.join(s.name for s in SETTINGS)}).")
        self._flags = flags
        self._environ = environ
        self._file = file

    def one(self, setting: Setting[T], default: T | None = None) -> T:
        for shown, given in (
            (setting.flag, self._flags.get(setting.name)),
            (setting.variable, self._environ.get(setting.variable) or None),
            (setting.name, self._file.get(setting.name)),
        ):
            if given is not None:
                try:
                    return setting.read(str(given))
                except ValueError as error:
                    raise BadSetting(f"{shown} {given}: {error}.") from error
        return setting.default if default is None else default

    def many(self, setting: Setting[str]) -> list[str]:
        return (
            _texts(self._flags.get(setting.name))
            or self._environ.get(setting.variable, "").split()
            or _texts(self._file.get(setting.name))
        )


def _texts(given: object) -> list[str]:
    """The values of a repeated setting; a file may hold a single one as it is."""
    if given is None:
        return []
    return [str(value) for value in cast("list[object]", given)] if isinstance(given, list) else [str(given)]


def _activated(environ: Mapping[str, str]) -> int:
    """The socket that systemd passes to a service: always number 3, if the variables are meant for this process."""
    meant = environ.get("LISTEN_PID") == str(os.getpid()) and environ.get("LISTEN_FDS", "").isdigit()
    return 3 if meant else NO_SOCKET
