"""Defaults that every program shares: the folders on this machine and the language of messages, both from the
environment that the caller passes in (`KUWA_HOME`, the XDG folders, the locale), and the address of a kernel. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Language = Literal["en", "zh-TW"]

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 9000
DEFAULT_KERNEL_URL = f"http://{DEFAULT_HOST}:{DEFAULT_PORT}"


@dataclass(frozen=True, slots=True)
class Folders:
    """Nothing is created here. `data` is for models and the chat history, `config` for secrets, `cache` for logs."""

    data: Path
    config: Path
    cache: Path

    @property
    def models(self) -> Path:
        return self.data / "models"

    @property
    def secrets(self) -> Path:
        return self.config / "secrets.json"

    def logs(self, port: int) -> Path:
        """The logs of one `kuwa up`: two of them on two ports never share a file."""
        return self.cache / "logs" / str(port)


def folders(environ: Mapping[str, str], home: Path) -> Folders:
    """`KUWA_HOME` for everything if it is set; else the folder `kuwa` in each of the XDG folders."""
    kuwa_home = environ.get("KUWA_HOME", "")
    if kuwa_home:
        root = Path(kuwa_home).expanduser().absolute()
        return Folders(data=root, config=root, cache=root / "cache")
    return Folders(
        data=_xdg(environ, "XDG_DATA_HOME", home / ".local" / "share") / "kuwa",
        config=_xdg(environ, "XDG_CONFIG_HOME", home / ".config") / "kuwa",
        cache=_xdg(environ, "XDG_CACHE_HOME", home / ".cache") / "kuwa",
    )


def _xdg(environ: Mapping[str, str], name: str, default: Path) -> Path:
    """The XDG rule: a relative path in one of its variables is invalid and ignored."""
    path = Path(environ.get(name, ""))
    return path if path.is_absolute() else default


def language(environ: Mapping[str, str]) -> Language:
    """The language of the messages, by the precedence that POSIX gives the variables."""
    chosen = next((environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environ.get(name)), "")
    return "zh-TW" if chosen.replace("-", "_").startswith(("zh_TW", "zh_Hant")) else "en"
