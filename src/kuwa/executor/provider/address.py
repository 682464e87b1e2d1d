"""Where a provider is: the check of `--base_url`. Used by `setup`; a client's request never changes it."""

from __future__ import annotations

from urllib.parse import urlsplit

from kuwa.executor.arguments import UsageError


def check_base_url(url: str, example: str) -> None:
    """Raises UsageError for what is no base URL of an API; `example` is one that is."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isascii()
    except ValueError:
        parts, sound = None, False
    if parts is None or not sound:
        raise UsageError(f"--base_url is {url!r}; it looks like {example}")
    if parts.username is not None:
        raise UsageError("--base_url holds a user name, which would take the place of the API key; leave it out")
