"""The help of every command: it shows the defaults that apply, and nothing where there is none."""

from __future__ import annotations

import argparse
from importlib.metadata import entry_points

import pytest

from kuwa.executor import LLMExecutor
from kuwa.executor.invocation import Invocation, invoked
from kuwa.executor.options import Option, add_options

EXECUTORS = {entry.name: entry for entry in entry_points(group="kuwa.executors")}


def help_of(kind: type[LLMExecutor], name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The whole help text, in one line."""
    with invoked(Invocation(f"kuwa-executor {name}", ["--help"], name=name)), pytest.raises(SystemExit) as ended:
        kind()
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


class Plain(LLMExecutor):
    def extend_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--colour", default=None, help="A colour")
        parser.add_argument("--shades", nargs="*", default=[], help="Its shades")
        parser.add_argument("--depth", type=int, default=3, help="A depth")
        add_options(
            parser,
            (
                Option("warmth", float, "How warm", otherwise="the model's own"),
                Option("length", int, "How long", default=0),
                Option("rhyme", bool, "Whether it rhymes"),
            ),
        )


@pytest.mark.parametrize("name", sorted(EXECUTORS))
def test_no_help_shows_a_default_of_none(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of(EXECUTORS[name].load(), name, capsys)
    assert "None)" not in shown
    assert "(default: )" not in shown
    assert "(default: INFO)" in shown


def test_an_executors_own_options_show_the_defaults_that_apply(capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of(Plain, "mine", capsys)
    assert "A colour --shades" in shown
    assert "Its shades --depth" in shown
    assert "A depth (default: 3)" in shown
    assert "How warm (default: the model's own)" in shown
    assert "How long (default: 0)" in shown
    assert "Whether it rhymes Further" in shown


def test_the_access_code_that_applies_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    class Named(LLMExecutor):
        LLM_name = "100%"

    assert "Access code (default: mine)" in help_of(Plain, "mine", capsys)
    assert "Access code (default: 100%)" in help_of(Named, "mine", capsys)
