"""What a command of `kuwa` was started with, as far as it talks to a kernel. `kuwa.cli` fills it in."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from kuwa.home import Folders, Language


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """`kernel_url` is without `/v1`; `tls` is None where the system's authorities are enough."""

    kernel_url: str
    language: Language
    folders: Folders
    tls: ssl.SSLContext | None = None
