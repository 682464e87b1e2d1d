"""The programs of one `kuwa up` and their command lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.fleet.config import Settings
from kuwa.fleet.programs import access_code_of, programs
from kuwa.home import Folders
from kuwa.wire.names import check_access_code


def settings(*models: str, defaults: bool = True) -> Settings:
    return Settings(
        port=9100,
        models=models,
        defaults=defaults,
        folders=Folders(data=Path("/data"), config=Path("/config"), cache=Path("/cache")),
        language="en",
    )


def test_by_default_the_kernel_comes_first_then_debug_dummy_and_welcome() -> None:
    plan = programs(settings(), gguf_engine=True)
    assert [p.name for p in plan] == ["kernel", "debug", "dummy", "welcome-file", "welcome"]
    assert plan[0].arguments == ("--port", "9100")


def test_every_executor_waits_for_the_kernel_and_is_told_where_it_is() -> None:
    for program in programs(settings("/m/a.gguf"), gguf_engine=True):
        if program.kind == "executor":
            assert "kernel" in program.needs
            at = program.arguments.index("--kernel_url")
            assert program.arguments[at + 1] == "http://127.0.0.1:9100/"


def test_welcome_waits_for_its_file_and_serves_it() -> None:
    plan = {p.name: p for p in programs(settings(), gguf_engine=True)}
    assert plan["welcome-file"].arguments == ("welcome", "/data/models/welcome.gguf")
    assert "welcome-file" in plan["welcome"].needs
    assert plan["welcome"].arguments[-2:] == ("--model_path", "/data/models/welcome.gguf")


def test_without_the_engine_debug_and_dummy_still_run() -> None:
    plan = programs(settings("/m/a.gguf"), gguf_engine=False)
    assert [p.name for p in plan] == ["kernel", "debug", "dummy"]


def test_without_defaults_only_the_given_models_run() -> None:
    plan = programs(settings("/m/Some Model.gguf", defaults=False), gguf_engine=True)
    assert [p.access_code for p in plan] == ["", "Some-Model"]


def test_files_of_one_name_get_access_codes_of_their_own() -> None:
    plan = programs(settings("/a/x.gguf", "/b/x.gguf", "/c/kernel.gguf", "/d/debug.gguf"), gguf_engine=True)
    names = [p.name for p in plan]
    assert names[-4:] == ["x", "x-2", "kernel-2", "debug-2"]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *[("a b,c.gguf", "a-b-c"), ("模型.gguf", "模型"), ("-x.gguf", "-x"), ("\t.gguf", "-"), ("/m/q?x.gguf", "q?x")],
        *[("hf://owner/repo?sub/poem.Q8_0.gguf", "poem.Q8_0"), ("hf://owner/repo", "repo")],
    ],
)
def test_a_file_name_becomes_a_valid_access_code(name: str, code: str) -> None:
    assert access_code_of(name, ()) == code


@given(st.text(min_size=1).filter(lambda name: "/" not in name and "\0" not in name))
def test_any_file_name_gives_a_valid_access_code(name: str) -> None:
    code = access_code_of(f"/models/{name}", {"gguf"})
    assert check_access_code(code) == code
