"""Who sends a request, and what of its head travels on."""

from __future__ import annotations

from kuwa.kernel.identity import brought_keys, principal, without_provider_key


def test_the_keys_that_a_request_brings_are_found_and_stay_away_from_servers_of_others() -> None:
    lines = b"accept-language: de\r\nx-kuwa-provider-key: sk-a\r\nx-request-id: 1\r\n"
    assert brought_keys(lines, {"openai_token": "sk-b", "input": "[]"}) == ["sk-a", "sk-b"]
    assert brought_keys(b"", None) == []
    assert without_provider_key(lines) == b"accept-language: de\r\nx-request-id: 1\r\n"


def test_a_token_names_a_principal_before_the_user_and_the_user_before_the_address() -> None:
    named = principal(b"Bearer secret", "ann", "10.0.0.1")
    assert named == principal(b"Bearer secret", None, "10.0.0.2")
    assert named != principal(b"Bearer other", "ann", "10.0.0.1")
    assert "secret" not in named.id
    assert principal(b"", "ann", "10.0.0.1") == principal(b"", "ann", "10.0.0.2") != principal(b"", None, "ann")
    assert principal(b"", "", "10.0.0.1") != principal(b"", None, "10.0.0.2")
