"""Notices the old distribution `kuwa-executor` beside this one, and says how to mend it.

Both ship a folder `kuwa/executor/` and a command `kuwa-executor`, so whichever pip installed last has overwritten
the other's files. The entry points of `kuwa`, `kuwa-kernel` and `kuwa-executor` call `check_clash` first. It lives
outside `kuwa/executor/`, where the old distribution cannot overwrite it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

EXIT_CLASH = 2


def check_clash() -> None:
    """Leave with exit code 2 and the commands that mend it if the old distribution is installed here."""
    found = old_distribution(sys.path)  # noqa: TID251 - read only: where pip may have put the old distribution
    if found is not None:
        sys.stderr.write(explanation(found, _direct_url()))
        raise SystemExit(EXIT_CLASH)


def old_distribution(folders: Iterable[str]) -> Path | None:
    """The metadata folder of the old distribution in one of `folders`, or None.

    Looks at names alone: `importlib.metadata` would cost a tenth of the time the whole command may take.
    """
    for folder in folders:
        try:
            entries = list(Path(folder).iterdir())
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith("kuwa_executor-") and entry.suffix in (".dist-info", ".egg-info"):
                return entry
    return None


def explanation(found: Path, direct_url: str) -> str:
    """What the person at the terminal reads. `direct_url` is pip's record of where `kuwa` was installed from."""
    commands = "".join(f"  {command}\n" for command in mending(direct_url))
    return (
        f"The old distribution 'kuwa-executor' is installed beside 'kuwa' ({found}).\n"
        "Both own the folder kuwa/executor and the command kuwa-executor, so one has overwritten the other.\n"
        f"Mend it with these two commands, then start again:\n{commands}"
    )


def mending(direct_url: str | None = None) -> tuple[str, str]:
    """The two commands that mend it; `direct_url` is looked up where it is None."""
    origin = _origin(_direct_url() if direct_url is None else direct_url)
    return (
        f"{sys.executable} -m pip uninstall --yes kuwa-executor",
        f"{sys.executable} -m pip install --force-reinstall --no-deps {origin}",
    )


def _origin(direct_url: str) -> str:
    """What to name to pip so that it installs `kuwa` from where it came (PEP 610; nothing recorded: the index)."""
    import json
    import shlex
    from urllib.parse import unquote, urlsplit

    if not direct_url:
        return "kuwa"
    record: dict[str, Any] = json.loads(direct_url)
    url = urlsplit(str(record["url"]))
    place = shlex.quote(unquote(url.path)) if url.scheme == "file" else record["url"]
    return f"--editable {place}" if record.get("dir_info", {}).get("editable") else place


def _direct_url() -> str:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        return distribution("kuwa").read_text("direct_url.json") or ""
    except PackageNotFoundError:
        return ""
