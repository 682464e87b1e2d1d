"""The command line of every executor: the help text, the general options, and their errors."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kuwa.builtin.debug import DebugExecutor
from kuwa.executor import LLMExecutor, Request, cli
from kuwa.executor.invocation import Invocation, invoked
from mission import DEBUG_HELP, LIST


class Plain(LLMExecutor):
    async def llm_compute(self, request: Request) -> AsyncIterator[str]:
        yield request.id


def executor(*arguments: str, kind: type[LLMExecutor] = Plain, **environment: str) -> LLMExecutor:
    with invoked(Invocation("kuwa-executor plain", arguments, environment, "plain")):
        return kind()


def test_the_list_of_executors_is_the_documented_one() -> None:
    assert cli.listing() == LIST


def test_the_help_of_debug_begins_as_documented(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with (
        invoked(Invocation("kuwa-executor debug", ["--help"])),
        pytest.raises(SystemExit) as caught,
    ):
        DebugExecutor()
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(DEBUG_HELP)


def test_the_access_code_is_the_given_one_else_the_classs_else_the_files() -> None:
    class Named(Plain):
        LLM_name = "named"

    assert executor("--access_code", "a", "--access_code", "b/c:d").access_codes == ("a", "b/c:d")
    assert executor("--access_code", "a").LLM_name == "a"
    assert executor(kind=Named).access_codes == ("named",)
    assert executor().access_codes == ("plain",)


def test_the_arguments_are_there_right_after_init() -> None:
    class Old(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.doubled = 2 * self.args.number

        def extend_arguments(self, parser: argparse.ArgumentParser) -> None:
            parser.add_argument("--number", type=int, default=4)

    made = executor("--number", "21", kind=Old)
    assert isinstance(made, Old)
    assert made.doubled == 42


def test_the_log_level_may_be_written_in_any_case() -> None:
    assert executor("--log", "debug").in_debug()
    assert executor(KUWA_LOG="warning").settings.log == "WARNING"


def test_the_environment_counts_below_the_command_line() -> None:
    assert executor(KUWA_KERNEL_URL="http://k:1").settings.kernel_url == "http://k:1/"
    given = executor("--kernel_url", "http://x:2/base", KUWA_KERNEL_URL="http://k:1")
    assert given.settings.kernel_url == "http://x:2/base/"


def test_the_limit_is_the_options_else_the_classs() -> None:
    class Wide(Plain):
        concurrency = 8

    assert executor(kind=Wide).settings.concurrency == 8
    assert executor("--concurrency", "3", kind=Wide).concurrency == 3
    assert executor("--concurrent_req_limit", "2").concurrency == 2


def test_an_executor_may_have_an_option_of_the_same_name_as_one_of_ours() -> None:
    class Own(Plain):
        concurrency = 5

        def extend_arguments(self, parser: argparse.ArgumentParser) -> None:
            parser.add_argument("--concurrency", default="mine")

    made = executor("--concurrency", "theirs", kind=Own)
    assert made.args.concurrency == "theirs"
    assert made.settings.concurrency == 5


@pytest.mark.parametrize(("given", "path"), [("/x/y/", "/x/y"), ("x", "/x"), ("/chat", "/chat"), ("/v1x", "/v1x")])
def test_the_executor_path_is_made_plain(given: str, path: str) -> None:
    assert executor("--executor_path", given).settings.executor_path == path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--access_code", "a b"], "--access_code"),
        (["--access_code", ""], "--access_code"),
        (["--access_code", "bot/x"], "bot/"),
        (["--access_code", "a,b"], "','"),
        (["--access_code", "x" * 201], "200"),
        (["--port", "65536"], "--port"),
        (["--port", "x"], "--port"),
        (["--executor_path", "/"], "--executor_path"),
        (["--executor_path", "/v1"], "/v1"),
        (["--executor_path", "/health"], "/health"),
        (["--executor_path", "/a?b"], "--executor_path"),
        (["--kernel_url", "ftp://x"], "--kernel_url"),
        (["--kernel_url", "http://x:99999"], "--kernel_url"),
        (["--version", ""], "--version"),
        (["--concurrency", "0"], "--concurrency"),
        (["--log", "loud"], "--log"),
        (["--tls_cert", "x"], "together"),
        (["--ca_file", "/nowhere"], "/nowhere"),
        (["--acces_code", "a"], "did you mean --access_code?"),
        (["word"], "word"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        executor(*arguments)
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1
    assert errors.startswith("kuwa-executor plain: ")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1", "no class"),
        ("import nowhere_to_be_found", "nowhere_to_be_found"),
        ("1 / 0", "ZeroDivisionError"),
        (
            "from kuwa.executor import LLMExecutor\nclass A(LLMExecutor): ...\nclass B(LLMExecutor): ...",
            "several executors (A, B)",
        ),
    ],
)
def test_a_file_that_defines_no_executor_is_one_line_that_says_so(
    tmp_path: Path, source: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken_executor.py"
    path.write_text(source)
    assert cli.start([str(path)], {}) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "usage: kuwa-executor"),
        (["--lst"], 2, "--lst"),
        (["debgu"], 2, "did you mean debug?"),
        (["./nowhere.py"], 2, "./nowhere.py"),
    ],
)
def test_the_command_says_what_it_did_not_understand(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.start(arguments, {}) == code
    assert said in capsys.readouterr().err


def test_the_command_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.start(["--help"], {}) == 0
    assert cli.start(["--list"], {}) == 0
    assert LIST in capsys.readouterr().out
