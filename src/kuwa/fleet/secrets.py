"""`kuwa secrets`: keeps API keys for the executors of this user on this machine. `kuwa.cli` calls it.

A value comes from standard input or a prompt, never from the command line, and is never shown again. The file and its
form belong to `kuwa.wire.secrets`.
"""

from __future__ import annotations

import getpass
import os
import secrets as random_names
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from kuwa.wire.secrets import (
    MAX_SECRET_LENGTH,
    PRIVATE_MODE,
    BadSecret,
    Secret,
    check_name,
    check_value,
    decode,
    encode,
)

KNOWN = "openai (for chatgpt), gemini (for geminipro)"


class SecretsFailed(Exception):
    """The command could not be followed; the message says why, and never holds a value."""


def set_secret(path: Path, name: str, secret: Secret) -> str:
    """Keep `secret` under `name`; a line that says so."""
    kept = read(path)
    kept[_named(name)] = secret
    write(path, kept)
    return f"{name} is kept in {path} as {secret.kept_as}. Executors read it when they start."


def remove_secret(path: Path, name: str) -> str:
    """Forget `name`; a line that says so."""
    kept = read(path)
    if kept.pop(_named(name), None) is None:
        raise SecretsFailed(f"there is no secret {name}; kuwa secrets list shows them")
    write(path, kept)
    return f"{name} is forgotten. Executors that run go on with it until they are started again."


def listing(path: Path) -> str:
    """The names and how each is kept; no values."""
    kept = read(path)
    if not kept:
        return f"No secrets are kept. Names that executors look for: {KNOWN}."
    width = max(map(len, kept))
    return "\n".join(f"{name:<{width}}  {secret.kept_as}" for name, secret in sorted(kept.items()))


def given_secret(file: str | None, variable: str | None, stdin: TextIO, name: str) -> Secret:
    """What to keep: a reference where one is given, else the value that is typed or piped in."""
    if file is not None:
        path = Path(file).expanduser().absolute()
        if not path.is_file():
            raise SecretsFailed(f"there is no file {path}")
        return Secret(file=str(path))
    if variable is not None:
        if not variable.isidentifier():
            raise SecretsFailed(f"{variable!r} is no name of an environment variable")
        return Secret(variable=variable)
    return Secret(value=_value(stdin, name))


def _value(stdin: TextIO, name: str) -> str:
    try:
        typed = (
            getpass.getpass(f"Value of {name} (not shown): ") if stdin.isatty() else stdin.read(MAX_SECRET_LENGTH + 2)
        )
        return check_value(typed)
    except BadSecret as error:
        raise SecretsFailed(f"{error}; nothing is kept") from None
    except (EOFError, KeyboardInterrupt, UnicodeDecodeError):
        raise SecretsFailed("no value was given; nothing is kept") from None


def _named(name: str) -> str:
    try:
        return check_name(name)
    except BadSecret as error:
        raise SecretsFailed(str(error)) from None


def read(path: Path) -> dict[str, Secret]:
    """The secrets that are kept; none where there is no file. Raises SecretsFailed."""
    try:
        return decode(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SecretsFailed(f"{path} cannot be read: {error.strerror}") from error
    except BadSecret as error:
        raise SecretsFailed(f"{path} cannot be read: {error}. Move it away and set the secrets again") from None


def write(path: Path, kept: Mapping[str, Secret]) -> None:
    """Replace the file in one step; nobody but its owner could ever read it. Raises SecretsFailed."""
    new = path.with_name(f".{path.name}.{random_names.token_hex(8)}")
    try:
        path.parent.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(encode(kept))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise SecretsFailed(f"{path} cannot be written: {error.strerror}") from error


def failed(error: SecretsFailed) -> int:
    sys.stderr.write(f"kuwa secrets: {error}\n")
    return 2
