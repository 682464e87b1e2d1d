"""Keeps what the model has read of its conversations over a restart: llama.cpp's slots as files in a folder.

The executor saves them when it leaves and restores them when the model is loaded. A file belongs to exactly one way
of starting one model: another model, context or cache type has other names.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import msgspec

from kuwa.builtin.llamacpp.child import ChildConfig
from kuwa.builtin.llamacpp.engine import Engine
from kuwa.builtin.llamacpp.launch import SLOT_SUFFIX
from kuwa.wire.errors import KuwaError

log = logging.getLogger(__name__)


class KeptSlots:
    """The slots of one engine in `config.slot_folder`."""

    def __init__(self, engine: Engine, config: ChildConfig) -> None:
        self._engine = engine
        self._folder = Path(config.slot_folder)
        self._slots = config.slots
        self._fingerprint = _fingerprint(config)

    async def save(self) -> None:
        """Write every slot that has read something."""
        for slot in await self._engine.get("/slots"):
            if slot.get("n_prompt_tokens", 0) and not slot["is_processing"]:
                await self._do(int(slot["id"]), "save")

    async def restore(self) -> None:
        """Read what was kept; a file that cannot be read is left alone."""
        restored = 0
        for slot in range(self._slots):
            if (self._folder / self._name(slot)).is_file():
                restored += await self._do(slot, "restore")
        if restored:
            log.info("%d conversations are as they were kept in %s", restored, self._folder)

    async def _do(self, slot: int, action: str) -> bool:
        try:
            await self._engine.call(f"/slots/{slot}?action={action}", {"filename": self._name(slot)})
        except KuwaError as error:
            log.warning("slot %d could not be %sd: %s", slot, action, error.message)
            return False
        return True

    def _name(self, slot: int) -> str:
        return f"{self._fingerprint}-{slot}{SLOT_SUFFIX}"


def _fingerprint(config: ChildConfig) -> str:
    model = Path(config.model_path).stat()
    same = msgspec.structs.replace(config, threads=0, batch=0, ubatch=0, cache_mib=0)
    same = msgspec.structs.replace(same, environment={}, slot_folder="", verbose=False)
    told = msgspec.json.encode([same, model.st_size, model.st_mtime_ns])
    return hashlib.sha256(told).hexdigest()[:24]
