"""Which API key a request to a provider is sent with: the user's own, else the operator's.

An executor adds the options with `add_key_options`, makes its `Keys` with `find_keys` in `setup`, and asks
`Keys.choose` for each request. No key is ever part of a message or a representation.
"""

from __future__ import annotations

import argparse
import logging
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kuwa.executor.arguments import UsageError
from kuwa.home import folders
from kuwa.wire.errors import InvalidApiKey, MissingApiKey
from kuwa.wire.secrets import MAX_SECRET_LENGTH, PRIVATE_MODE, BadSecret, Secret, decode, usable_key

KEY_OPTION = "--api_key"
THIRD_PARTY_OPTION = "--use_third_party_api_key"
THIRD_PARTY_FIELD = "third_party_token"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Provider:
    """Where keys for a provider are looked for.

    `secret` is what `kuwa secrets` calls it; `variables` are asked in their order; `form_field` is the field of the
    v1.0 form that brings a user's own key for the provider, whose API is at `host`.
    """

    secret: str
    variables: tuple[str, ...]
    form_field: str
    host: str

    def owns(self, url: str) -> bool:
        """Whether `url` is at the provider's own host (or one below it), where nobody on the way reads the key."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        return parts.scheme == "https" and (host == self.host or host.endswith("." + self.host))


def add_key_options(add_argument: Callable[..., Any], provider: Provider) -> None:
    """Add the options to a parser or a group of it, whose `add_argument` is given."""
    variables = " or ".join(provider.variables)
    add_argument(
        KEY_OPTION,
        default=None,
        help=f"API key (default: from --api_key_file, from {variables} in the environment, or from "
        f"'kuwa secrets set {provider.secret}')",
    )
    add_argument(
        "--api_key_file",
        default=None,
        metavar="FILE",
        help="File that contains the API key; keeps the key off the command line",
    )
    add_argument("--no_override_api_key", action="store_true", help="Ignore API keys in requests")
    add_argument(
        THIRD_PARTY_OPTION,
        action="store_true",
        help="Send API keys in requests to --base_url, whichever server that is; the v1.0 form has them in "
        f"{THIRD_PARTY_FIELD} instead of {provider.form_field}. Without this option they are sent to {provider.host} "
        "only",
    )


class Keys:
    """The operator's key, if there is one, and whether a request may bring another.

    `form_field` is the field of the v1.0 form that may bring it. `withheld_from` is the server that gets no key of a
    request, since it is not the provider's; empty where requests may bring a key, or may bring none anywhere.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        own: str,
        source: str,
        requests_may_bring: bool,
        form_field: str,
        withheld_from: str,
    ) -> None:
        self._provider = provider
        self._own = own
        self._source = source
        self._requests_may_bring = requests_may_bring
        self.form_field = form_field
        self.withheld_from = withheld_from

    def __bool__(self) -> bool:
        """Whether the operator gave one."""
        return bool(self._own)

    def choose(self, brought: str) -> tuple[str, str]:
        """The key and where it came from, for error texts.

        `brought` is the key that came with the request. Raises MissingApiKey naming the ways to give one.
        """
        if brought and self._requests_may_bring:
            if not usable_key(brought):
                raise InvalidApiKey("The API key that came with the request holds characters that no key has.")
            return brought, "the request"
        if self:
            return self._own, self._source
        raise MissingApiKey(f"This model needs an API key. {self.ways()}")

    def ways(self) -> str:
        """How a key can be given."""
        provider = self._provider
        brought = f"Send one with the request (header X-Kuwa-Provider-Key, or {self.form_field} in the v1.0 form), "
        ways = (
            f"{brought + 'or have' if self._requests_may_bring else 'Have'} the executor started with --api_key, "
            f"--api_key_file or {' or '.join(provider.variables)} in its environment, or run "
            f"'kuwa secrets set {provider.secret}' and start it again; a server that asks for no key takes any, such "
            "as --api_key dummy."
        )
        return f"{ways} {self.withholding()}" if self.withheld_from else ways

    def withholding(self) -> str:
        """Why a key that a request brings is not used, and how it would be."""
        return (
            f"A key that a request brings is not sent to {self.withheld_from}, since it may be meant for "
            f"{self._provider.host} alone; {THIRD_PARTY_OPTION} sends it."
        )


def find_keys(args: argparse.Namespace, environment: Mapping[str, str], provider: Provider, home: Path) -> Keys:
    """The operator's key, from the first place that has one: `--api_key`, `--api_key_file`, the environment, the
    global value; and whether requests may bring another to `--base_url`. Raises UsageError for a place that was named
    and holds no key.
    """
    key, source = _first(args, environment, provider, home)
    if key and not usable_key(key):
        raise UsageError(f"the API key from {source} holds spaces, line breaks or characters that no key has")
    base_url = str(args.base_url)
    overridable = not args.no_override_api_key
    reaches = args.use_third_party_api_key or provider.owns(base_url)
    keys = Keys(
        provider,
        own=key,
        source=source,
        requests_may_bring=overridable and reaches,
        form_field=THIRD_PARTY_FIELD if args.use_third_party_api_key else provider.form_field,
        withheld_from=urlsplit(base_url).netloc if overridable and not reaches else "",
    )
    if keys.withheld_from:
        log.info("%s", keys.withholding())
    return keys


def _first(args: argparse.Namespace, environment: Mapping[str, str], provider: Provider, home: Path) -> tuple[str, str]:
    if key := (args.api_key or "").strip():
        return key, KEY_OPTION
    if args.api_key_file is not None:
        return _read("--api_key_file", Path(args.api_key_file)), "--api_key_file"
    for variable in provider.variables:
        if key := environment.get(variable, "").strip():
            return key, variable
    source = f"'kuwa secrets set {provider.secret}'"
    secret = _global_values(folders(environment, home).secrets).get(provider.secret)
    return (_resolve(secret, source, environment), source) if secret else ("", "")


def _resolve(secret: Secret, source: str, environment: Mapping[str, str]) -> str:
    if secret.file:
        return _read(source, Path(secret.file))
    if secret.variable:
        return environment.get(secret.variable, "").strip()
    return secret.value


def _read(source: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            key = file.read(MAX_SECRET_LENGTH).decode("ascii").strip()
    except OSError as error:
        raise UsageError(f"{source}: the file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UsageError(f"{source}: the file {path} holds no API key") from None
    if not key:
        raise UsageError(f"{source}: the file {path} is empty")
    return key


def _global_values(path: Path) -> dict[str, Secret]:
    """What `kuwa secrets` keeps; nothing, and a line in the log, where the file cannot be trusted or read."""
    try:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            if stat.S_IMODE(state.st_mode) & ~PRIVATE_MODE:
                log.warning("%s is not used, since others may read it: chmod 600 it, and change the keys in it", path)
                return {}
            return decode(file.read())
    except FileNotFoundError:
        return {}
    except (OSError, BadSecret) as error:
        log.warning("%s is not used: %s", path, error.strerror if isinstance(error, OSError) else error)
        return {}
