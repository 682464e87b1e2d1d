"""The project's own files agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def extras_in(name: str) -> list[set[str]]:
    """The sets of extras that `name` installs from this checkout, written as `.[one,two]`, in its order."""
    found = re.findall(r"\.\[([a-z0-9_,]+)\]", (ROOT / name).read_text(encoding="utf-8"))
    assert found, name
    return [set(one.split(",")) for one in found]


def test_requirements_and_make_install_every_extra_there_is() -> None:
    """`make run` alone leaves out the one whose packages take gigabytes."""
    extras = set(PROJECT["optional-dependencies"])
    assert extras_in("requirements.txt") == [extras]
    assert extras_in("Makefile") == [extras - {"huggingface"}, extras]


def test_the_readmes_name_every_executor_there_is() -> None:
    for name in ("README.md", "README.zh-TW.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for executor in PROJECT["entry-points"]["kuwa.executors"]:
            assert f"`{executor}`" in text, (name, executor)


def test_every_local_link_of_the_documents_leads_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target):
                assert (document.parent / target).exists(), (document, target)


def test_the_gate_runs_what_the_readme_says() -> None:
    [command] = re.findall(r'^command="(.+)"$', (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert f"\n```sh\n{command}\n```\n" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_version_stands_in_both_places_alike() -> None:
    import kuwa

    assert PROJECT["version"] == kuwa.__version__
