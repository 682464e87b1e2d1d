"""How large a module and a class may grow, and that no two modules import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import grimp
import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "kuwa"
MOST_LINES = 450
MOST_METHODS = 25
TABLES_OF_WORDS = "words/"


def modules() -> Iterator[tuple[str, str]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path.relative_to(SOURCE).as_posix(), path.read_text(encoding="utf-8")


def too_long(text: str) -> bool:
    return text.count("\n") > MOST_LINES


def too_large(text: str) -> list[str]:
    """The classes of a module with too many methods."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef) and sum(isinstance(each, functions) for each in node.body) > MOST_METHODS
    ]


def circles(imported: Mapping[str, Set[str]]) -> list[list[str]]:
    """The modules that reach themselves by their imports, those of one circle together."""
    reached = {module: _reached(module, imported) for module in imported}
    found = {frozenset(o for o in reached[m] if m in reached[o]) for m in imported if m in reached[m]}
    return sorted(sorted(circle) for circle in found)


def _reached(module: str, imported: Mapping[str, Set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = imported.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def test_no_module_is_longer_than_can_be_read_at_a_sitting() -> None:
    long = {name for name, text in modules() if too_long(text) and not name.startswith(TABLES_OF_WORDS)}
    assert long == set()


def test_no_class_has_more_methods_than_can_be_kept_in_mind() -> None:
    large = {f"{name}: {each}" for name, text in modules() for each in too_large(text)}
    assert not large


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions and those for the type checker count too."""
    graph = grimp.build_graph("kuwa", cache_dir=None)
    assert circles({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}) == []


@pytest.mark.parametrize(
    ("imported", "found"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set[str]()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, [["b", "c"]]),
        ({"a": {"a"}}, [["a"]]),
        ({"a": {"b"}, "b": {"a", "c"}, "c": {"d"}, "d": {"c"}}, [["a", "b"], ["c", "d"]]),
    ],
)
def test_the_search_for_circles_finds_what_it_is_for(imported: dict[str, set[str]], found: list[list[str]]) -> None:
    assert circles(imported) == found


def test_lines_and_methods_are_counted_as_people_do() -> None:
    assert not too_long("x\n" * MOST_LINES)
    assert too_long("x\n" * (MOST_LINES + 1))
    methods = "".join(f"    def m{n}(self): ...\n" for n in range(MOST_METHODS))
    assert too_large(f"class A:\n{methods}") == []
    assert too_large(f"class A:\n{methods}    async def more(self): ...\n") == ["A"]
