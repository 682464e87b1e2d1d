"""Folders and language as the environment asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kuwa.home import folders, language

HOME = Path("/home/someone")


def test_without_any_variable_the_xdg_defaults_hold() -> None:
    found = folders({}, HOME)
    assert found.models == HOME / ".local/share/kuwa/models"
    assert found.secrets == HOME / ".config/kuwa/secrets.json"
    assert found.logs(9000) == HOME / ".cache/kuwa/logs/9000"


def test_the_xdg_variables_move_the_folders_but_for_relative_ones() -> None:
    found = folders({"XDG_DATA_HOME": "/data", "XDG_CONFIG_HOME": "/etc/xdg", "XDG_CACHE_HOME": "relative"}, HOME)
    assert found.data == Path("/data/kuwa")
    assert found.secrets == Path("/etc/xdg/kuwa/secrets.json")
    assert found.cache == HOME / ".cache/kuwa"


def test_kuwa_home_holds_everything() -> None:
    found = folders({"KUWA_HOME": "/srv/kuwa", "XDG_DATA_HOME": "/data"}, HOME)
    assert found.models == Path("/srv/kuwa/models")
    assert found.secrets == Path("/srv/kuwa/secrets.json")
    assert found.logs(9001) == Path("/srv/kuwa/cache/logs/9001")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "en"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "zh_TW.UTF-8"}, "zh-TW"),
        ({"LANG": "zh_CN.UTF-8"}, "en"),
        ({"LANG": "zh_TW.UTF-8", "LC_ALL": "en_US.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "", "LC_MESSAGES": "zh_TW"}, "zh-TW"),
    ],
)
def test_the_language_follows_the_locale_variables(environ: dict[str, str], expected: str) -> None:
    assert language(environ) == expected
