"""Reads the configuration files that executors are given: generation options as YAML or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kuwa.executor.arguments import UsageError
from kuwa.wire.json import BadJson, decode, is_object


def read_config(path: str | Path | None) -> dict[str, Any]:
    """The mapping that the file `path` holds; empty for no path or an empty file.

    `.json` is read as JSON, everything else as YAML. Raises UsageError naming the file and the place at fault.
    """
    if path is None:
        return {}
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"the generation config {path} cannot be read: {error.strerror}") from error
    content = _json(path, data) if str(path).lower().endswith(".json") else _yaml(path, data)
    if content is None:
        return {}
    if not is_object(content):
        raise UsageError(f"the generation config {path} holds no options; write lines such as temperature: 0.2")
    return {str(key): value for key, value in content.items()}


def _json(path: str | Path, data: bytes) -> Any:
    try:
        return decode(data) if data.strip() else None
    except BadJson as error:
        raise UsageError(f"the generation config {path} is no JSON: {error}") from error


def _yaml(path: str | Path, data: bytes) -> Any:
    import yaml  # 20 ms that --help need not pay

    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"the generation config {path} is no YAML: {' '.join(str(error).split())}") from error
