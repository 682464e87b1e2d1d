"""Each idea has one home, held by reading the source's syntax."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "kuwa"
OPENAI_FIELDS = {"choices", "delta", "tool_calls", "finish_reason", "prompt_tokens"}
NOT_OPENAI = {
    "executor/options.py Option": "the values that a generation option takes, named as argparse names them",
    "executor/request.py Embeddings": "what the author of an executor returns, before the server makes a message of it",
    "executor/request.py Ranking": "what the author of an executor returns, before the server makes a message of it",
    "wire/resume.py Announcement": "the words of a comment in a stream, not a message",
}


def openai_shapes(tree: ast.AST) -> list[str]:
    """The classes that declare a field of OpenAI's messages."""
    return [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(
            isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.target.id in OPENAI_FIELDS
            for line in node.body
        )
    ]


def test_openais_messages_are_declared_in_one_module() -> None:
    found = {
        f"{path.relative_to(SOURCE).as_posix()} {name}"
        for path in SOURCE.rglob("*.py")
        if path != SOURCE / "wire" / "openai.py"
        for name in openai_shapes(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == NOT_OPENAI.keys()


@pytest.mark.parametrize("field", sorted(OPENAI_FIELDS))
def test_a_message_declared_elsewhere_would_be_found(field: str) -> None:
    assert openai_shapes(ast.parse(f"class Odd(Struct):\n    index: int = 0\n    {field}: int = 0")) == ["Odd"]
