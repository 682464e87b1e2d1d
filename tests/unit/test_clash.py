"""The old distribution `kuwa-executor` is noticed by its metadata folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kuwa.clash import explanation, old_distribution


def test_a_folder_without_the_old_distribution_is_no_clash(tmp_path: Path) -> None:
    (tmp_path / "kuwa-0.1.0.dist-info").mkdir()
    assert old_distribution([str(tmp_path), str(tmp_path / "absent")]) is None


def test_the_old_distribution_is_found_wherever_it_lies(tmp_path: Path) -> None:
    old = tmp_path / "second" / "kuwa_executor-0.1.0.dist-info"
    old.mkdir(parents=True)
    assert old_distribution([str(tmp_path), str(tmp_path / "second")]) == old


@pytest.mark.parametrize(
    ("direct_url", "origin"),
    [
        ("", "kuwa"),
        ('{"url": "file:///home/me/my%20kuwa", "dir_info": {}}', "'/home/me/my kuwa'"),
        ('{"url": "file:///src/kuwa", "dir_info": {"editable": true}}', "--editable /src/kuwa"),
        ('{"url": "https://example.org/kuwa.whl", "archive_info": {}}', "https://example.org/kuwa.whl"),
    ],
)
def test_the_explanation_names_both_commands_and_where_kuwa_came_from(
    tmp_path: Path, direct_url: str, origin: str
) -> None:
    text = explanation(tmp_path, direct_url)
    assert f"{sys.executable} -m pip uninstall --yes kuwa-executor\n" in text
    assert f"{sys.executable} -m pip install --force-reinstall --no-deps {origin}\n" in text
