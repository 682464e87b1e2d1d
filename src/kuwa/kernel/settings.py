"""The kernel's settings: flag over environment `KUWA_*` over default, checked once.

`cli` parses the flags and calls `load`; every other part is given what it needs from `Settings`. This is the one
place of the kernel that reads the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from kuwa.kernel.policy import POLICIES, PolicyName
from kuwa.kernel.trust import may_listen
from kuwa.wire.errors import InvalidRequest
from kuwa.wire.names import check_access_code

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
MAX_DRAIN_S = 86_400.0

T = TypeVar("T")


class BadSetting(Exception):
    """A setting that cannot be. The message is one line: which flag or variable, what is wrong, what to do."""


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
class Settings:
    """Everything that can be set. `drain_s` is how long a stopping kernel lets its requests run on; `first_token_s`
    how long a replica may give no sign of computing before the first token; `listen_fd` a socket that listens
    already, inherited from whoever started the kernel, -1 for none.
    """

    host: str = "127.0.0.1"
    port: int = 9000
    log_level: str = "INFO"
    upstreams: tuple[Upstream, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_executors: tuple[str, ...] = ()
    insecure_no_auth: bool = False
    policies: Mapping[str, PolicyName] = field(default_factory=dict[str, PolicyName])
    ca_file: str = ""
    drain_s: float = 60.0
    first_token_s: float = 120.0
    listen_fd: int = -1


DEFAULTS = Settings()


def load(flags: Mapping[str, object], environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from parsed flags (None or an empty list where not given) and the environment.

    Raises BadSetting.
    """
    env = os.environ if environ is None else environ  # noqa: TID251 - the one place of the kernel that reads it
    source = _Source(flags, env)
    settings = Settings(
        host=source.one("host", str, DEFAULTS.host),
        port=source.one("port", _port, DEFAULTS.port),
        log_level=source.one("log_level", _log_level, DEFAULTS.log_level),
        upstreams=tuple(parse_upstream(text, env) for text in source.many("upstream")),
        allowed_hosts=tuple(source.many("allowed_host")),
        allowed_executors=tuple(source.many("allowed_executor")),
        insecure_no_auth=source.one("insecure_no_auth", _switch, DEFAULTS.insecure_no_auth),
        policies=parse_policies(source.many("policy")),
        ca_file=source.one("ca_file", _readable_file, DEFAULTS.ca_file),
        drain_s=source.one("drain_s", _seconds, DEFAULTS.drain_s),
        first_token_s=source.one("first_token_s", _seconds, DEFAULTS.first_token_s),
        listen_fd=source.one("listen_fd", _descriptor, _activated(env)),
    )
    if not may_listen(settings.host, insecure_no_auth=settings.insecure_no_auth):
        raise BadSetting(
            f"--host {settings.host}: this kernel has no access keys, so everyone who reaches that address could "
            "use it. Keep --host 127.0.0.1, or add --insecure_no_auth if that is what you want."
        )
    return settings


def parse_upstream(text: str, environ: Mapping[str, str]) -> Upstream:
    """Read `CODE=BASE_URL[#MODEL]`; its key is in `environ`. Raises BadSetting."""
    found = re.fullmatch(r"(.+?)=(https?://[^#]+)(?:#(.+))?", text)
    if found is None:
        raise BadSetting(
            f"--upstream {text}: expected CODE=BASE_URL or CODE=BASE_URL#MODEL, such as "
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
            f"--upstream {code}: its URL must be plain, without spaces, user name, password or query. "
            f"Give the key in the environment variable {key_variable(code)}."
        )
    key = environ.get(key_variable(code), "").strip()
    if not (key.isascii() and key.isprintable()):
        raise BadSetting(f"{key_variable(code)} holds characters that no key has.")
    return Upstream(code, url, model, key)


def parse_policies(texts: Sequence[str]) -> dict[str, PolicyName]:
    """Read each `CODE=NAME`: by which policy the replicas of the access code are chosen. Raises BadSetting."""
    policies: dict[str, PolicyName] = {}
    for text in texts:
        code, _, given = text.rpartition("=")
        name: PolicyName | None = next((policy for policy in POLICIES if policy == given), None)
        if not code:
            raise BadSetting(f"--policy {text}: expected CODE=NAME, such as llama=prefix.")
        if name is None:
            raise BadSetting(f"--policy {text}: {given!r} is no policy; there are {', '.join(POLICIES)}.")
        try:
            check_access_code(code)
        except InvalidRequest as error:
            raise BadSetting(f"--policy {text}: {error.message}") from error
        if policies.setdefault(code, name) != name:
            raise BadSetting(f"--policy {text}: {code} has the policy {policies[code]} already; give one of the two.")
    return policies


def key_variable(access_code: str) -> str:
    """The environment variable that holds an upstream's key: every other character than A-Z, 0-9 is `_`."""
    return "KUWA_UPSTREAM_KEY_" + re.sub(r"[^A-Z0-9]", "_", access_code.upper())


class _Source:
    """Looks a setting up among the flags, then in the environment."""

    def __init__(self, flags: Mapping[str, object], environ: Mapping[str, str]) -> None:
        self._flags = flags
        self._environ = environ

    def one(self, name: str, read: Callable[[str], T], default: T) -> T:
        given = self._flags.get(name)
        shown = f"--{name}"
        if given is None:
            shown = variable = f"KUWA_{name.upper()}"
            given = self._environ.get(variable) or None
        if given is None:
            return default
        try:
            return read(str(given))
        except ValueError as error:
            raise BadSetting(f"{shown} {given}: {error}.") from error

    def many(self, name: str) -> Sequence[str]:
        """A repeated flag; in the environment its values are separated by blanks."""
        given = self._flags.get(name)
        if isinstance(given, list) and given:
            return [str(value) for value in given]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] - argparse does not type its lists
        return self._environ.get(f"KUWA_{name.upper()}", "").split()


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError("a port is a number from 0 (any free one) to 65535")
    return int(text)


def _log_level(text: str) -> str:
    level = text.upper()
    if level not in LOG_LEVELS:
        raise ValueError(f"a log level is one of {', '.join(LOG_LEVELS)}")
    return level


def _switch(text: str) -> bool:
    value = text.lower()
    if value not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError("expected 1 or 0")
    return value in ("1", "true", "yes", "on")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_DRAIN_S:
        raise ValueError(f"expected seconds from 0 to {MAX_DRAIN_S:g}")
    return seconds


def _descriptor(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= 3):
        raise ValueError("an inherited socket is a number from 3")
    return int(text)


def _activated(environ: Mapping[str, str]) -> int:
    """The socket by which systemd starts a service: always number 3, where the variables are meant for us."""
    meant = environ.get("LISTEN_PID") == str(os.getpid()) and environ.get("LISTEN_FDS", "").isdigit()
    return 3 if meant else DEFAULTS.listen_fd


def _readable_file(text: str) -> str:
    if not Path(text).is_file():
        raise ValueError("there is no such file")
    return text
