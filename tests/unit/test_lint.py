"""What must stand nowhere in our code, held by reading its syntax: the holes of this field, each closed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "kuwa"
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "torch.load"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}


def faults(tree: ast.AST) -> list[str]:
    """What is forbidden in `tree`, each with its line."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS:
                found.append(f"line {node.lineno}: {name}()")
            found += [
                f"line {node.lineno}: shell={ast.unparse(keyword.value)}"
                for keyword in node.keywords
                if keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
            ]
        elif isinstance(node, ast.Import):
            found += [
                f"line {node.lineno}: import {alias.name}"
                for alias in node.names
                if alias.name.partition(".")[0] in FORBIDDEN_MODULES
            ]
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.partition(".")[0] in FORBIDDEN_MODULES:
                found.append(f"line {node.lineno}: from {node.module} import …")
            if node.module == "yaml" and any(alias.name in {"load", "Loader", "UnsafeLoader"} for alias in node.names):
                found.append(f"line {node.lineno}: from yaml import load")
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_code_from_data_no_pickle_and_no_shell(path: Path) -> None:
    assert faults(ast.parse(path.read_text(), str(path))) == []


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "exec(x)",
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "yaml.load(x)",
        "torch.load(x)",
        "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=flag)",
        "os.system(x)",
    ],
)
def test_the_lint_sees_what_it_is_for(line: str) -> None:
    assert faults(ast.parse(line))


@pytest.mark.parametrize(
    "line", ["yaml.safe_load(x)", "subprocess.run(x, shell=False)", "re.compile(x)", "ast.literal_eval(x)"]
)
def test_the_lint_lets_the_harmless_pass(line: str) -> None:
    assert not faults(ast.parse(line))
