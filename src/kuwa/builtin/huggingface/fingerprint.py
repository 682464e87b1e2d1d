"""By what answers of this executor are computed, as one word: two executors with the same word answer alike.

Called once, behind the loading. The weights are looked at where they are, in memory: names, shapes, number formats
and some values of each, so that an adapter or another quantisation is told apart and a large model costs no second
reading.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import torch

VALUES = 64
"""How many numbers of each tensor count."""
PACKAGES = ("kuwa", "torch", "transformers", "tokenizers")


def fingerprint(model: Any, tokenizer: Any, settings: Iterable[object]) -> str:
    """`settings`: whatever else the answers depend on, each as its `repr`. Empty where weights are not in memory."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr([version(package) for package in PACKAGES]).encode())
    digest.update(repr([str(model.device), _device(model.device), torch.get_num_threads()]).encode())
    digest.update(repr(list(settings)).encode())
    digest.update(_tokenizer(tokenizer).encode())
    for name, tensor in model.state_dict().items():
        if tensor.device.type == "meta":
            return ""
        flat = tensor.flatten()
        places = torch.linspace(0, flat.numel() - 1, min(VALUES, flat.numel()), dtype=torch.float64).long()
        values: list[float] = flat[places.to(flat.device)].double().tolist() if flat.numel() else []
        digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype), values)).encode())
    return f"huggingface-{digest.hexdigest()}"


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()


def _tokenizer(tokenizer: Any) -> str:
    fast: Any = getattr(tokenizer, "backend_tokenizer", None)
    return fast.to_str() if fast is not None else repr(sorted(tokenizer.get_vocab().items()))
