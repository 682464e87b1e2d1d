"""The settings of one `kuwa up`; `kuwa.cli` fills them in."""

from __future__ import annotations

from dataclasses import dataclass

from kuwa.home import DEFAULT_HOST, Folders, Language

ON_THE_HUB = "hf://"
"""The prefix of a model on the Hugging Face hub; its executor downloads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`models` are additional GGUF files to serve: paths, or `hf://REPO?FILE`."""

    port: int
    models: tuple[str, ...]
    defaults: bool
    folders: Folders
    language: Language

    @property
    def kernel_url(self) -> str:
        return f"http://{DEFAULT_HOST}:{self.port}"
