"""Where the key of a request comes from, in which order, and that no key is ever shown."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import pytest

from kuwa.executor.arguments import UsageError
from kuwa.executor.provider.address import check_base_url
from kuwa.executor.provider.keys import Keys, Provider, add_key_options, find_keys
from kuwa.wire.errors import InvalidApiKey, MissingApiKey

PROVIDER = Provider("openai", ("OPENAI_API_KEY", "OTHER_API_KEY"), "openai_token", "api.provider.test")
HOME_URL = "https://api.provider.test/v1"
CANARY = "sk-canary-5c1d"


def found(home: Path, *arguments: str, **environment: str) -> Keys:
    parser = argparse.ArgumentParser()
    add_key_options(parser.add_argument, PROVIDER)
    parser.add_argument("--base_url", default=HOME_URL)
    return find_keys(parser.parse_args(arguments), environment, PROVIDER, home)


def keep(home: Path, mode: int = 0o600, **secrets: dict[str, str]) -> Path:
    """The file of `kuwa secrets`, in the home's configuration folder."""
    path = home / ".config" / "kuwa" / "secrets.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(secrets))
    path.chmod(mode)
    return path


def test_the_places_are_asked_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-file\n")
    keep(tmp_path, openai={"value": "sk-global"})
    options = {"--api_key": "sk-option", "--api_key_file": str(file)}
    variables = {"OPENAI_API_KEY": "sk-first", "OTHER_API_KEY": "sk-second"}
    everything = [word for option in options.items() for word in option]

    assert found(tmp_path, *everything, **variables).choose("sk-own") == ("sk-own", "the request")
    assert found(tmp_path, *everything, **variables).choose("") == ("sk-option", "--api_key")
    assert found(tmp_path, *everything[2:], **variables).choose("") == ("sk-file", "--api_key_file")
    assert found(tmp_path, **variables).choose("") == ("sk-first", "OPENAI_API_KEY")
    assert found(tmp_path, OTHER_API_KEY="sk-second").choose("") == ("sk-second", "OTHER_API_KEY")
    assert found(tmp_path).choose("") == ("sk-global", "'kuwa secrets set openai'")


def test_the_global_value_may_be_kept_in_a_file_or_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("  sk-file \n")
    keep(tmp_path, openai={"file": str(file)})
    assert found(tmp_path).choose("")[0] == "sk-file"
    keep(tmp_path, openai={"variable": "VAULT_KEY"})
    assert found(tmp_path, VAULT_KEY="sk-vault").choose("")[0] == "sk-vault"
    assert not found(tmp_path)


def test_kuwa_home_holds_the_global_values_where_it_is_set(tmp_path: Path) -> None:
    keep(tmp_path, openai={"value": "sk-home"})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert not found(tmp_path, KUWA_HOME=str(elsewhere))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_global_values_that_others_can_read_are_not_used(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    keep(tmp_path, mode, openai={"value": CANARY})
    with caplog.at_level(logging.WARNING):
        assert not found(tmp_path)
    assert "chmod 600" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize("content", [f'{{"openai": "{CANARY}"}}', f"{CANARY}", '{"openai": {"valeu": "x"}}', "[]"])
def test_a_file_of_global_values_that_is_none_is_told_without_its_content(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep(tmp_path).write_text(content)
    with caplog.at_level(logging.WARNING):
        assert not found(tmp_path)
    assert "secrets.json" in caplog.text
    assert CANARY not in caplog.text


def test_a_requests_key_is_not_used_where_the_operator_forbids_it(tmp_path: Path) -> None:
    assert found(tmp_path, "--api_key", "sk-option", "--no_override_api_key").choose("sk-own")[0] == "sk-option"


@pytest.mark.parametrize("url", [HOME_URL, "https://eu.api.provider.test/v1", "https://API.Provider.test:443"])
def test_a_requests_key_goes_to_the_provider(tmp_path: Path, url: str) -> None:
    keys = found(tmp_path, "--api_key", "sk-option", "--base_url", url)
    assert (keys.choose("sk-own")[0], keys.form_field, keys.withheld_from) == ("sk-own", "openai_token", "")


@pytest.mark.parametrize(
    "url",
    [
        "http://api.provider.test/v1",
        "https://api.provider.test.evil.test/v1",
        "https://evil-api.provider.test/v1",
        "https://provider.test/v1",
        "https://elsewhere.test/api.provider.test/v1",
        "http://127.0.0.1:8000/v1",
    ],
)
def test_a_requests_key_goes_nowhere_else_unless_the_operator_says_so(
    tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        keys = found(tmp_path, "--api_key", "sk-option", "--base_url", url)
    assert keys.choose("sk-own") == ("sk-option", "--api_key")
    assert keys.withheld_from in url
    assert keys.withheld_from in caplog.text
    assert "--use_third_party_api_key" in caplog.text
    with pytest.raises(MissingApiKey, match="--use_third_party_api_key"):
        found(tmp_path, "--base_url", url).choose("sk-own")

    allowed = found(tmp_path, "--api_key", "sk-option", "--base_url", url, "--use_third_party_api_key")
    assert (allowed.choose("sk-own")[0], allowed.form_field) == ("sk-own", "third_party_token")


def test_the_option_against_requests_keys_goes_before_the_one_for_them(tmp_path: Path) -> None:
    keys = found(tmp_path, "--api_key", "sk-option", "--no_override_api_key", "--use_third_party_api_key")
    assert (keys.choose("sk-own")[0], keys.withheld_from) == ("sk-option", "")


def test_without_any_key_the_answer_names_the_ways_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(MissingApiKey) as raised:
        found(tmp_path).choose("")
    assert raised.value.status == 401
    ways = ("X-Kuwa-Provider-Key", "openai_token", "--api_key", "--api_key_file", "OPENAI_API_KEY", "kuwa secrets set")
    for way in ways:
        assert way in raised.value.message
    with pytest.raises(MissingApiKey) as raised:
        found(tmp_path, "--no_override_api_key").choose("sk-own")
    assert "X-Kuwa-Provider-Key" not in raised.value.message


@pytest.mark.parametrize("key", ["sk-ä", "sk-1\r\nX-Evil: 1", "two words", "\x00"])
def test_a_requests_key_that_no_header_can_hold_is_refused_without_being_shown(tmp_path: Path, key: str) -> None:
    with pytest.raises(InvalidApiKey) as raised:
        found(tmp_path, "--api_key", "sk-option").choose(key)
    assert key not in raised.value.message


def test_an_operators_key_that_no_header_can_hold_is_refused_at_start_without_being_shown(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--api_key") as raised:
        found(tmp_path, "--api_key", f"{CANARY} more")
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
def test_a_key_file_that_holds_none_is_refused_at_start(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match="--api_key_file"):
        found(tmp_path, "--api_key_file", str(file))


def test_no_key_is_in_the_representation(tmp_path: Path) -> None:
    assert CANARY not in repr(vars(found(tmp_path))) + repr(found(tmp_path, "--api_key", CANARY))


@pytest.mark.parametrize("url", ["", "localhost:8000/v1", "ftp://h/v1", "http://", "http://h:99999/v1", "http://[::1"])
def test_a_base_url_that_is_none_is_refused_at_start(url: str) -> None:
    with pytest.raises(UsageError, match="--base_url"):
        check_base_url(url, "https://api.openai.com/v1")


def test_a_base_url_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(UsageError, match="--base_url") as raised:
        check_base_url("http://me:hunter2@h/v1", "https://api.openai.com/v1")
    assert "hunter2" not in str(raised.value)
