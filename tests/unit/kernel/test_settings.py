from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.kernel.settings import (
    SETTINGS,
    BadSetting,
    Setting,
    Settings,
    Upstream,
    key_variable,
    load,
    parse_upstream,
)

PORTS = st.none() | st.integers(0, 65535)


def test_without_flags_and_environment_the_defaults_count() -> None:
    assert load({}, {}) == Settings()
    assert (Settings().host, Settings().port, Settings().log_level) == ("127.0.0.1", 9000, "INFO")


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    environ = {"KUWA_PORT": "9100", "KUWA_LOG_LEVEL": "debug", "KUWA_DRAIN_S": "1.5"}
    settings = load({"port": "9200", "log_level": None}, environ)
    assert (settings.port, settings.log_level, settings.drain_s) == (9200, "DEBUG", 1.5)


@given(flag=PORTS, variable=PORTS, key=PORTS)
def test_a_flag_wins_over_the_environment_that_over_a_file_and_that_over_the_default(
    flag: int | None, variable: int | None, key: int | None
) -> None:
    environ = {} if variable is None else {"KUWA_PORT": str(variable)}
    file = {} if key is None else {"port": key}
    expected = next((port for port in (flag, variable, key) if port is not None), 9000)
    assert load({"port": None if flag is None else str(flag)}, environ, file).port == expected


def test_a_file_may_hold_numbers_switches_one_value_or_a_list() -> None:
    file: dict[str, object] = {
        "drain_s": 2.5,
        "insecure_no_auth": True,
        "allowed_host": "x.test",
        "allowed_executor": ["a.test", "b.test"],
    }
    settings = load({}, {}, file)
    assert (settings.drain_s, settings.insecure_no_auth) == (2.5, True)
    assert settings.allowed_hosts == ("x.test",)
    assert settings.allowed_executors == ("a.test", "b.test")
    assert load({}, {"KUWA_ALLOWED_EXECUTOR": "c.test"}, file).allowed_executors == ("c.test",)


@pytest.mark.parametrize(
    ("file", "said"),
    [({"prot": 1}, "unknown setting 'prot' (choose from host, port,"), ({"port": 70_000}, "port 70000: ")],
)
def test_a_key_of_a_file_that_is_wrong_is_named(file: dict[str, object], said: str) -> None:
    with pytest.raises(BadSetting) as caught:
        load({}, {}, file)
    assert str(caught.value).startswith(said)


def test_an_empty_variable_counts_as_none() -> None:
    assert load({}, {"KUWA_PORT": "", "KUWA_UPSTREAM": " "}) == Settings()


def test_what_may_be_repeated_is_separated_by_blanks_in_the_environment() -> None:
    settings = load(
        {"allowed_host": ["x.test"]},
        {"KUWA_ALLOWED_HOST": "y.test", "KUWA_ALLOWED_EXECUTOR": "a.test b.test"},
    )
    assert settings.allowed_hosts == ("x.test",)
    assert settings.allowed_executors == ("a.test", "b.test")


def test_policies_are_given_by_access_code() -> None:
    policies = {"m": "prefix", "a=b/c:1": "session"}
    assert load({"policy": ["m=prefix", "a=b/c:1=session", "m=prefix"]}, {}).policies == policies
    assert load({}, {"KUWA_POLICY": "m=prefix a=b/c:1=session"}).policies == policies


def test_listening_beyond_loopback_is_refused_without_the_word_for_it() -> None:
    with pytest.raises(BadSetting, match="--insecure_no_auth"):
        load({"host": "0.0.0.0"}, {})  # noqa: S104 - that it is refused is the test
    assert load({"host": "0.0.0.0", "insecure_no_auth": "1"}, {}).insecure_no_auth  # noqa: S104 - see above
    assert load({"host": "192.0.2.7"}, {"KUWA_INSECURE_NO_AUTH": "true"}).host == "192.0.2.7"


@pytest.mark.parametrize(
    ("flags", "environ", "said"),
    [
        ({"port": "x"}, {}, "--port x: port must be 0-65535 (0: any free port)"),
        ({"port": "-1"}, {}, "--port -1"),
        ({"port": "65536"}, {}, "--port 65536"),
        ({}, {"KUWA_PORT": "9_000"}, "KUWA_PORT 9_000"),
        ({"log_level": "loud"}, {}, "--log_level loud"),
        ({"drain_s": "nan"}, {}, "--drain_s nan"),
        ({"drain_s": "soon"}, {}, "--drain_s soon"),
        ({"ca_file": "/no/such/file"}, {}, "--ca_file /no/such/file"),
        ({"listen_fd": "2"}, {}, "--listen_fd 2: file descriptor must be 3 or higher"),
        ({}, {"KUWA_INSECURE_NO_AUTH": "perhaps"}, "KUWA_INSECURE_NO_AUTH"),
        ({"upstream": ["gpt"]}, {}, "--upstream gpt"),
        ({"policy": ["prefix"]}, {}, "--policy prefix: must be CODE=NAME"),
        ({"policy": ["m=prefx"]}, {}, "unknown policy 'prefx' (choose from least_loaded, prefix, session)"),
        ({"policy": ["m=prefix", "m=session"]}, {}, "m already has the policy prefix"),
        ({"policy": ["a,b=prefix"]}, {}, "--policy a,b=prefix"),
    ],
)
def test_a_setting_that_cannot_be_is_named_in_one_line(
    flags: dict[str, object], environ: dict[str, str], said: str
) -> None:
    with pytest.raises(BadSetting) as caught:
        load(flags, environ)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_ca_file_that_exists_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.touch()
    assert load({"ca_file": str(file)}, {}).ca_file == str(file)


@pytest.mark.parametrize(
    ("text", "upstream"),
    [
        ("gpt=https://api.test/v1", Upstream("gpt", "https://api.test/v1")),
        ("gpt=https://api.test/v1/#gpt-4o", Upstream("gpt", "https://api.test/v1", "gpt-4o")),
        ("a/b:c=http://127.0.0.1:8000/v1#org/model#2", Upstream("a/b:c", "http://127.0.0.1:8000/v1", "org/model#2")),
        ("a=b=http://127.0.0.1/v1", Upstream("a=b", "http://127.0.0.1/v1")),
    ],
)
def test_an_upstream_is_a_code_a_base_url_and_perhaps_a_model(text: str, upstream: Upstream) -> None:
    assert parse_upstream(text, {}) == upstream


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gpt",
        "=https://api.test/v1",
        "gpt=ftp://api.test/v1",
        "a b=https://api.test/v1",
        "bot/x=https://api.test/v1",
        "gpt=https://",
        "gpt=https://user:secret@api.test/v1",
        "gpt=https://api.test/v1?key=secret",
        "gpt=https://api.test:0/v1",
        "gpt=https://api.test:x/v1",
        "gpt=https://api test/v1",
        "gpt=https://[::1/v1",
        "gpt=https://api.test/v1#",
    ],
)
def test_what_is_no_upstream_is_refused(text: str) -> None:
    with pytest.raises(BadSetting, match="--upstream"):
        parse_upstream(text, {})


def test_a_refused_upstream_does_not_repeat_what_may_be_a_secret() -> None:
    with pytest.raises(BadSetting) as caught:
        parse_upstream("gpt=https://user:secret@api.test/v1", {})
    assert "secret" not in str(caught.value)
    assert "KUWA_UPSTREAM_KEY_GPT" in str(caught.value)


def test_an_upstreams_key_is_read_from_its_variable_and_never_shown() -> None:
    assert key_variable("gpt-4o/mini:1") == "KUWA_UPSTREAM_KEY_GPT_4O_MINI_1"
    upstream = parse_upstream("my.gpt=https://api.test/v1", {"KUWA_UPSTREAM_KEY_MY_GPT": " canary\n"})
    assert upstream.key == "canary"
    assert "canary" not in repr(upstream)


def test_a_key_with_a_line_break_inside_is_refused() -> None:
    with pytest.raises(BadSetting, match="KUWA_UPSTREAM_KEY_GPT"):
        parse_upstream("gpt=https://api.test/v1", {"KUWA_UPSTREAM_KEY_GPT": "a\r\nx: y"})


def row(setting: Setting[Any]) -> str:
    """A setting's line in the table of docs/settings.md."""
    text = setting.described.replace("|", "\\|").replace("<", "&lt;")
    flag = f"{setting.flag} {setting.metavar}".strip()
    return f"| `{flag}` | `{setting.variable}` | {text[0].upper()}{text[1:]} |"


def test_the_page_of_the_settings_has_a_row_for_each_in_the_words_of_the_help() -> None:
    page = Path(__file__).parents[3] / "docs" / "settings.md"
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `--")]
    assert rows == [row(setting) for setting in SETTINGS]
