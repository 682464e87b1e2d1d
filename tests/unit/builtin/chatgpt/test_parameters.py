"""The static table beside the installed SDK's own description of the API."""

from __future__ import annotations

import types
import typing
from typing import Any

import pytest

from kuwa.builtin.chatgpt.parameters import CHAT_ONLY, COMPATIBLE, OPENAI, PARAMETERS, TOKEN_LIMITS

SCALARS = (int, float, bool)
# What the table leaves to requests: they belong to one conversation or one user, or the SDK calls them deprecated.
NOT_OPTIONS = {
    "messages",
    "model",
    "audio",
    "function_call",
    "functions",
    "metadata",
    "modalities",
    "moderation",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "response_format",
    "safety_identifier",
    "stream_options",
    "tool_choice",
    "tools",
    "user",
    "web_search_options",
}


def kinds(annotation: Any) -> set[type[Any]]:
    """The plain Python types that an annotation of the SDK allows."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(kinds(part) for part in typing.get_args(annotation))) - {type(None)}
    if origin is typing.Literal:
        return {type(value) for value in typing.get_args(annotation)}
    return {origin or annotation}


@pytest.fixture(scope="module")
def sdk() -> dict[str, set[type[Any]]]:
    params = pytest.importorskip("openai.types.chat.completion_create_params")
    hints = typing.get_type_hints(params.CompletionCreateParamsBase)
    return {name: kinds(annotation) for name, annotation in hints.items()}


def test_every_parameter_of_the_sdk_is_an_option_or_left_out_on_purpose(sdk: dict[str, set[type[Any]]]) -> None:
    assert {option.name for option in OPENAI} == set(sdk) - NOT_OPTIONS


def test_no_numeric_parameter_is_left_out(sdk: dict[str, set[type[Any]]]) -> None:
    assert not [name for name in NOT_OPTIONS if sdk[name] & set(SCALARS)]


def test_the_types_are_those_of_the_sdk(sdk: dict[str, set[type[Any]]]) -> None:
    scalar = {option.name: {option.type} for option in OPENAI if option.type not in (list, dict)}
    assert scalar == {name: sdk[name] for name in scalar}
    assert {option.name for option in OPENAI if option.type is list} == {"stop"}
    assert dict in sdk["logit_bias"]


def test_options_of_other_servers_do_not_shadow_those_of_openai() -> None:
    names = [option.name for option in PARAMETERS]
    assert len(names) == len(set(names))
    assert not {option.name for option in COMPATIBLE} & {option.name for option in OPENAI}


def test_the_named_groups_hold_known_options() -> None:
    assert {*TOKEN_LIMITS, *CHAT_ONLY} <= {option.name for option in OPENAI}


def test_nothing_has_a_default_since_only_what_was_set_is_sent() -> None:
    assert all(option.default is None for option in PARAMETERS)
