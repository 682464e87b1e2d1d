"""Generation options: precedence, types, bounds, and errors that name what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.executor.arguments import ExecutorParser, UsageError
from kuwa.executor.config_file import read_config
from kuwa.executor.options import Option, add_options, collect, merge
from kuwa.wire.errors import InvalidRequest

TABLE = (
    Option("temperature", float, "Randomness, 0 to 100% of it", default=0.5, low=0, high=2),
    Option("max_tokens", int, "Length", low=1),
    Option("do_sample", bool, "Draw", default=False),
    Option("mode", str, "Which", choices=("fast", "slow")),
    Option("stop", list, "End before"),
    Option("logit_bias", dict, "Bias"),
)


def collected(*arguments: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
    parser = ExecutorParser("test")
    add_options(parser, TABLE)
    return collect(parser.parse(arguments), TABLE, config or {})


def test_defaults_count_where_nobody_says_anything() -> None:
    assert collected() == {"temperature": 0.5, "do_sample": False}


def test_the_file_goes_before_the_defaults_and_the_command_line_before_the_file() -> None:
    config = {"temperature": 0.7, "max_tokens": 5}
    assert collected(config=config) == {"temperature": 0.7, "do_sample": False, "max_tokens": 5}
    assert collected("--temperature", "0.9", config=config)["temperature"] == 0.9


def test_the_request_goes_before_all_of_them() -> None:
    base = collected("--temperature=0.9")
    assert merge(base, {"temperature": 0.1, "max_tokens": None, "unknown": 3}, TABLE)["temperature"] == 0.1


@pytest.mark.parametrize("arguments", [["--temperature=0.25"], ["--temperature", "0.25"]])
def test_a_value_stands_behind_an_equals_sign_or_a_blank(arguments: list[str]) -> None:
    assert collected(*arguments)["temperature"] == 0.25


def test_every_type_is_read_from_the_command_line() -> None:
    values = collected(
        *("--max_tokens", "7", "--do_sample", "true", "--mode", "slow", "--stop", "a", "--stop", "b"),
        *("--logit_bias", '{"50": -1}'),
    )
    assert values["stop"] == ["a", "b"]
    assert (values["max_tokens"], values["do_sample"], values["mode"]) == (7, True, "slow")
    assert values["logit_bias"] == {"50": -1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--temperature", "hot"], "must be a number"),
        (["--temperature", "3"], "must be at most 2"),
        (["--temperature", "nan"], "must be a number"),
        (["--max_tokens", "0"], "must be at least 1"),
        (["--max_tokens", "1.5"], "must be a whole number"),
        (["--mode", "x"], "must be one of fast, slow"),
        (["--do_sample", "maybe"], "must be true or false"),
        (["--temprature", "1"], "did you mean --temperature?"),
    ],
)
def test_a_bad_option_ends_with_one_line_that_says_why(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        collected(*arguments)
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


def test_an_unknown_key_of_the_file_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="'temperatur', which is no option; did you mean 'temperature'"):
        collected(config={"temperatur": 1})


def test_a_bad_value_of_the_file_is_named() -> None:
    with pytest.raises(UsageError, match="max_tokens must be at least 1, not -2"):
        collected(config={"max_tokens": -2})


def test_a_bad_value_of_the_request_is_named_as_its_parameter() -> None:
    with pytest.raises(InvalidRequest) as caught:
        merge({}, {"temperature": "hot"}, TABLE)
    assert caught.value.param == "temperature"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.yaml", "temperature: 0.2\nstop: [x]\n", {"temperature": 0.2, "stop": ["x"]}),
        ("a.json", '{"temperature": 0.2}', {"temperature": 0.2}),
        ("a.conf", "temperature: 0.2", {"temperature": 0.2}),
        ("empty.yaml", "", {}),
        ("empty.json", "", {}),
    ],
)
def test_a_file_is_read_as_json_or_yaml(tmp_path: Path, name: str, content: str, expected: dict[str, Any]) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert read_config(path) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "{"),
        ("a.yaml", "a: [1"),
        ("a.yaml", "- 1\n- 2"),
        ("a.yaml", "!!python/object/apply:os.getcwd []"),
        ("a.json", "[" * 100_000),
        ("a.yaml", "[" * 3000),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UsageError, match=name):
        read_config(path)


def test_a_missing_file_is_named_and_no_file_is_no_options(tmp_path: Path) -> None:
    assert read_config(None) == {}
    with pytest.raises(UsageError, match="nowhere"):
        read_config(tmp_path / "nowhere.yaml")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(TABLE), JSON_VALUES)
def test_whatever_passes_the_check_passes_it_again_unchanged(option: Option, value: Any) -> None:
    try:
        checked = option.check(value)
    except ValueError:
        return
    assert isinstance(checked, option.type)
    assert option.check(checked) == checked


@given(st.dictionaries(st.sampled_from([option.name for option in TABLE]), JSON_VALUES))
def test_merging_gives_checked_values_or_names_a_parameter(asked: dict[str, Any]) -> None:
    named = ""
    try:
        merged = merge({}, asked, TABLE)
    except InvalidRequest as error:
        named = error.param or "nothing"
        merged = {}
    if named:
        assert named in asked
    else:
        assert set(merged) == {name for name, value in asked.items() if value is not None}
