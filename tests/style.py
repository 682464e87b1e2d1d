"""Measures the English of a text: how often it uses constructions that docs/style.md replaces.

`python tests/style.py FILE…` prints the findings of Markdown and Python files. Code blocks and words in a table that
are examples of what to avoid do not count.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PATTERNS = {
    "headless what or who": re.compile(
        r"(?:^|[.,;:(]\s+|\b(?:by|of|with|to|for|from)\s)(?:what|who(?:ever)?)\s+"
        r"(?:is|comes|it|has|was|goes|stands|does|follows|waits|needs|they|an?|the)\b",
        re.IGNORECASE | re.MULTILINE,
    ),
    "is no": re.compile(r"(?<!\b[Tt]here )\b(?:is|are) no \w+"),
    "stands or lies": re.compile(r"\b(?:stands?|lies?) (?:in|on|at|beside|behind|below|above|there|here)\b"),
    "goes on": re.compile(r"\bgo(?:es)? on\b"),
    "nobody": re.compile(r"\b(?:nobody|somebody|anybody)\b", re.IGNORECASE),
    "anew, is told, brings along": re.compile(r"\banew\b|\b(?:is|are) told\b|\bbrings? along\b"),
    "beside": re.compile(r"\bbeside\b", re.IGNORECASE),
    "of its own": re.compile(r"\bof (?:its|their) own\b"),
}
_BLOCK = re.compile(r"```.*?```", re.DOTALL)
_QUOTED = re.compile(r"\"[^\"\n]*\"|`[^`\n]*`")
_AVOIDED = re.compile(r"^\| Instead of \|.*?(?=\n\n|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Finding:
    construction: str
    words: str


def findings(text: str) -> list[Finding]:
    """Each construction in `text` that the style guide replaces."""
    return [
        Finding(name, match.group().strip()) for name, pattern in PATTERNS.items() for match in pattern.finditer(text)
    ]


def findings_in(path: Path) -> list[Finding]:
    """Those in the text of a Markdown file, or in the docstrings, comments and strings of a Python file."""
    text = path.read_text(encoding="utf-8")
    pieces = _python(text) if path.suffix == ".py" else [_markdown(text)]
    return [finding for piece in pieces for finding in findings(piece)]


def _markdown(text: str) -> str:
    return _QUOTED.sub("", _AVOIDED.sub("", _BLOCK.sub("", text)))


def _python(text: str) -> Iterator[str]:
    """Strings of two words or more, which are docstrings, messages and help, and comments."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.value
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string.lstrip("# ")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for finding in findings_in(Path(name)):
            sys.stdout.write(f"{name}: {finding.construction}: {finding.words}\n")
