"""Of which kind a replica is, is asked of its lifecycle or its wire: held by reading the kernel's syntax."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

KERNEL = Path(__file__).resolve().parents[3] / "src" / "kuwa" / "kernel"
MAY_ASK = ("lifecycle.py", "wires/")
KINDS = {"Lifecycle", "Leased", "Polled", "Configured"}
FIELDS = {"source", "wire", "life"}


def asks(node: ast.AST) -> bool:
    """Whether the expression is the kind, or the wire, of something."""
    return isinstance(node, ast.Attribute) and node.attr in FIELDS


def branches(tree: ast.AST) -> list[int]:
    """The lines that compare, match or look up a kind or a wire, or ask for the class of a lifecycle."""
    return [getattr(node, "lineno", 0) for node in ast.walk(tree) if _tells_apart(node)]


def _tells_apart(node: ast.AST) -> bool:
    match node:
        case ast.Compare():
            operands = [node.left, *node.comparators]
            absent = any(isinstance(one, ast.Constant) and one.value is None for one in operands)
            return any(map(asks, operands)) and not absent
        case ast.Match():
            return asks(node.subject)
        case ast.Subscript():
            return asks(node.slice)
        case ast.MatchClass():
            return bool(_names(node.cls) & KINDS)
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass" | "type")):
            return bool(_names(node) & KINDS) or any(map(asks, node.args))
        case _:
            return False


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def modules() -> list[Path]:
    """The kernel's modules that have to ask a lifecycle or a wire."""
    found = sorted(KERNEL.rglob("*.py"))
    return [path for path in found if not path.relative_to(KERNEL).as_posix().startswith(MAY_ASK)]


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(KERNEL).as_posix())
def test_no_module_but_lifecycles_and_wires_tells_replicas_apart(path: Path) -> None:
    assert branches(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        'if replica.source == "lease": pass',
        'if "v1.0" != call.replica.wire: pass',
        'x = replica.source in ("old", "upstream")',
        "isinstance(replica.life, Leased)",
        "isinstance(life, Polled)",
        "type(replica.life)",
        "RELAYS[replica.wire]",
        'match replica.wire:\n case "openai": pass',
        "match life:\n case Configured(): pass",
    ],
)
def test_a_branch_is_seen(line: str) -> None:
    assert branches(ast.parse(line))


@pytest.mark.parametrize(
    "line", ["replica.life.lost", "Cell(replica.source)", 'replica.state == "gone"', "exchange.source is not None"]
)
def test_what_is_no_branch_passes(line: str) -> None:
    assert not branches(ast.parse(line))
