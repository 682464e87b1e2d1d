"""The English of the pages and modules that follow docs/style.md. Add a path here when its text follows the guide."""

from __future__ import annotations

from pathlib import Path

import pytest

from style import Finding, findings, findings_in

ROOT = Path(__file__).parents[2]
FOLLOWING = [
    "docs/settings.md",
    "docs/style.md",
    "src/kuwa/builtin/chatgpt/parameters.py",
    "src/kuwa/builtin/geminipro/parameters.py",
    "src/kuwa/builtin/huggingface/options.py",
    "src/kuwa/builtin/llamacpp/sampling.py",
    "src/kuwa/cli.py",
    "src/kuwa/fleet/config.py",
    "src/kuwa/home.py",
    "src/kuwa/kernel/cli.py",
    "src/kuwa/kernel/report.py",
    "src/kuwa/kernel/settings.py",
    "src/kuwa/wire/report.py",
    "src/kuwa/words/__init__.py",
    "src/kuwa/words/catalogue.py",
    "src/kuwa/words/en.py",
    "src/kuwa/words/phrases.py",
]


@pytest.mark.parametrize("name", FOLLOWING)
def test_the_text_uses_the_constructions_of_the_style_guide(name: str) -> None:
    assert findings_in(ROOT / name) == []


@pytest.mark.parametrize(
    ("text", "construction"),
    [
        ("The page shows. What is served is listed.", "headless what or who"),
        ("A line of what the kernel says.", "headless what or who"),
        ("8 is no port.", "is no"),
        ("The file stands in a folder.", "stands or lies"),
        ("The stream goes on.", "goes on"),
        ("Nobody reads it.", "nobody"),
        ("The model is told.", "anew, is told, brings along"),
        ("It runs beside the kernel.", "beside"),
        ("A thread of its own.", "of its own"),
    ],
)
def test_the_measure_finds_each_construction(text: str, construction: str) -> None:
    assert construction in {finding.construction for finding in findings(text)}


@pytest.mark.parametrize(
    "text",
    ["What is Kuwa", "It is not a valid port.", "The kernel stands by.", "Whose turn it is.", "There is no command."][
        1:
    ],
)
def test_the_measure_lets_native_text_pass(text: str) -> None:
    assert findings(text) == []


def test_the_measure_reads_the_texts_of_python_and_not_its_code(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('"""It goes on."""\nbeside = "beside"\nx = f"8 is no port: {beside}"  # nobody\n')
    assert {finding.construction for finding in findings_in(module)} == {"is no", "goes on", "nobody"}


def test_the_measure_skips_code_blocks_quotes_and_the_words_to_avoid(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        'Write "is not", not "is no port".\n\n```sh\necho goes on\n```\n\n'
        "| Instead of | Write |\n|---|---|\n| beside | next to |\n\nIt lies here.\n"
    )
    assert findings_in(page) == [Finding("stands or lies", "lies here")]
