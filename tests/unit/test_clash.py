"""The old distribution `kuwa-executor` is noticed by its metadata folder."""

from __future__ import annotations

import sys
from pathlib import Path

from kuwa.clash import explanation, old_distribution


def test_a_folder_without_the_old_distribution_is_no_clash(tmp_path: Path) -> None:
    (tmp_path / "kuwa-0.1.0.dist-info").mkdir()
    assert old_distribution([str(tmp_path), str(tmp_path / "absent")]) is None


def test_the_old_distribution_is_found_wherever_it_lies(tmp_path: Path) -> None:
    old = tmp_path / "second" / "kuwa_executor-0.1.0.dist-info"
    old.mkdir(parents=True)
    assert old_distribution([str(tmp_path), str(tmp_path / "second")]) == old


def test_the_explanation_names_both_commands_for_this_very_python(tmp_path: Path) -> None:
    text = explanation(tmp_path)
    assert f"{sys.executable} -m pip uninstall --yes kuwa-executor" in text
    assert f"{sys.executable} -m pip install --force-reinstall --no-deps kuwa" in text
