from __future__ import annotations

import subprocess
import sys

import pytest

from kuwa.kernel.cli import main

HEAVY = {"starlette", "httpx2", "structlog", "prometheus_client", "uvloop", "asyncio", "rich", "psutil"}


def complaint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[object, str]:
    monkeypatch.setattr(sys, "argv", ["kuwa-kernel", *argv])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--prt", "9000"], "--prt"),
        (["--port"], "--port"),
        (["--port", "nine"], "--port nine"),
        (["--host", "192.0.2.7"], "--insecure_no_auth"),
        (["--upstream", "gpt"], "CODE=BASE_URL"),
        (["surplus"], "surplus"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    code, text = complaint(monkeypatch, capsys, *argv)
    assert code == 2
    assert text.startswith("kuwa-kernel: ")
    assert text.count("\n") == 1
    assert said in text


def test_nothing_heavy_is_imported_before_the_flags_are_sound() -> None:
    script = f"import sys, kuwa.kernel.cli; print(*sorted({HEAVY!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
