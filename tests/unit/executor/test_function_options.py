"""The functions that executors of 2024 import from `kuwa.executor.util` and `kuwa.executor.llm_executor`."""

from __future__ import annotations

import argparse

from kuwa.executor import llm_executor, util


def create(
    model: str, temperature: float | None = None, top_k: int = 5, verbose: bool = False, limit: int | str = 9
) -> None:
    """Make something.

    temperature: how hot
    """


def describe(doc: str, name: str) -> str | None:
    return next((line.partition(": ")[2] for line in doc.splitlines() if line.startswith(name)), None)


def test_a_functions_numbers_become_options() -> None:
    parser = argparse.ArgumentParser()
    found = util.expose_function_parameter(create, parser, defaults={"temperature": 0.5}, desc_parser=describe)
    assert found == {"temperature": 0.5, "top_k": 5, "limit": 9}
    args = parser.parse_args(["--top_k", "7", "--temperature", "1"])
    assert (args.top_k, args.temperature, args.limit) == (7, 1.0, 9)
    assert "how hot" in parser.format_help()


def test_without_a_parser_only_the_defaults_are_told() -> None:
    assert util.expose_function_parameter(create, accepted_types=(str,)) == {"model": None, "limit": 9}


def test_merging_leaves_out_what_is_none() -> None:
    base = {"a": 1, "b": 2}
    assert util.merge_config(base, {"a": None, "b": 3, "c": 4}) == {"a": 1, "b": 3, "c": 4}
    assert util.merge_config(base=base, top={}) == base


def test_a_description_parser_is_extended() -> None:
    class Mine(util.DescriptionParser):
        def __call__(self, doc: str, name: str) -> str | None:
            return describe(doc, name)

    assert Mine()("temperature: how hot", "temperature") == "how hot"


def test_the_names_of_june_2024_are_there() -> None:
    assert llm_executor.LLMExecutor.__name__ == "LLMExecutor"
    assert llm_executor.to_openai_chat_format([]) == []
    assert util.read_config is not None
