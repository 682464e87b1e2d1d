"""The program that lists the GGUF files of this machine: `python -m kuwa.builtin.llamacpp.library FOLDER…`.

`kuwa models` becomes this program. It looks into the Hugging Face cache and the folders given, and reads no more
than each file's header.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from kuwa.builtin.llamacpp.header import KINDS, BadModelFile, read_header

PIPE_WIDTH = 4096
"""In a pipe nothing is cut to a terminal's width."""

_SNAPSHOT = re.compile(r"models--(.+?)--(.+)/snapshots/[0-9a-f]+/(.+)")


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One file. `model` is what `--model_path` takes; `size` is in bytes, `context_length` in tokens.

    Of a file that cannot be used only `model`, `size` and `fault` are filled in.
    """

    model: str
    size: int
    kind: str = ""
    name: str = ""
    architecture: str = ""
    parameters: int = 0
    quantisation: str = ""
    context_length: int = 0
    licence: str = ""
    fault: str = ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="kuwa models", description="List the GGUF files of this machine.")
    parser.add_argument("folder", nargs="*", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    found = [_listed(path) for path in _files([_cache(), *args.folder])]
    if args.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    else:
        _print(found)
    return 0


def _cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _files(folders: Iterable[Path]) -> Iterator[Path]:
    """Every GGUF file once; of a split model its first part."""
    seen: set[Path] = set()
    for folder in folders:
        for path in sorted(folder.rglob("*.gguf")):
            later_part = re.search(r"-(\d{5})-of-\d{5}\.gguf$", path.name)
            real = path.resolve()
            if real in seen or not path.is_file() or (later_part is not None and later_part[1] != "00001"):
                continue
            seen.add(real)
            yield path


def _listed(path: Path) -> Listed:
    model, size = _as_model_path(path), path.stat().st_size
    try:
        header = read_header(path, KINDS)
    except BadModelFile as error:
        return Listed(model=model, size=size, fault=str(error))
    return Listed(
        model=model,
        size=_whole_size(path, size),
        kind=header.kind,
        name=header.name,
        architecture=header.architecture,
        parameters=header.parameters,
        quantisation=header.quantisation,
        context_length=header.context_length,
        licence=header.licence,
    )


def _whole_size(path: Path, size: int) -> int:
    """Of a split model, the size of all its parts."""
    if not re.search(r"-00001-of-\d{5}\.gguf$", path.name):
        return size
    pattern = path.name.replace("-00001-of-", "-[0-9][0-9][0-9][0-9][0-9]-of-")
    return sum(part.stat().st_size for part in path.parent.glob(pattern))


def _as_model_path(path: Path) -> str:
    in_cache = _SNAPSHOT.search(path.as_posix())
    return f"hf://{in_cache[1]}/{in_cache[2]}?{in_cache[3]}" if in_cache is not None else str(path)


def _print(found: list[Listed]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    if not found:
        console.print("No GGUF file is here yet; get one: kuwa pull 'hf://owner/repo?file.gguf'")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("MODEL", overflow="fold", no_wrap=not console.is_terminal)
    for column in ("SIZE", "QUANT", "PARAMETERS", "CONTEXT", "ARCHITECTURE", "LICENCE"):
        right = column in ("SIZE", "PARAMETERS", "CONTEXT")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for file in found:
        about = (file.fault and ["?"] * 5) or [
            file.quantisation,
            _short(file.parameters),
            str(file.context_length) if file.kind == "model" else file.kind,
            file.architecture,
            file.licence or "not said",
        ]
        # Text: what a file says of itself is no markup.
        table.add_row(*(Text(cell) for cell in (file.model, _bytes(file.size), *about)))
    console.print(table)
    for file in found:
        if file.fault:
            console.print(Text(f"! {file.fault}"))


def _short(count: int) -> str:
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
