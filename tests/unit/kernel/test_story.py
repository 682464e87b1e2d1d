"""A story is woken by what it waits for, one step after another, and can be interrupted where it waits."""

from __future__ import annotations

import pytest

from kuwa.kernel.story import Steps, Story
from kuwa.wire.errors import ClientGone


def never() -> None:
    raise AssertionError("the last resort of a story that went well")


def test_a_story_runs_at_once_until_it_waits_and_on_in_the_call_that_wakes_it() -> None:
    steps: list[str] = []

    def tell() -> Steps:
        steps.append("begun")
        yield
        steps.append("woken")

    story = Story(tell(), never)
    story.wake()
    assert steps == ["begun"]
    assert not story.over
    story.wake()
    assert steps == ["begun", "woken"]
    assert story.over


def test_a_story_that_is_woken_for_something_else_waits_on() -> None:
    happened: list[str] = []
    heard: list[str] = []

    def tell() -> Steps:
        while not happened:
            yield
        heard.extend(happened)

    story = Story(tell(), never)
    story.wake()
    story.wake()
    assert not story.over
    happened.append("it")
    story.wake()
    assert heard == ["it"]


def test_a_story_that_wakes_itself_is_not_entered_twice() -> None:
    heard: list[str] = []

    def tell() -> Steps:
        yield
        story.wake()
        heard.append("from inside")

    story = Story(tell(), never)
    story.wake()
    story.wake()
    assert heard == ["from inside"]
    assert story.over


def test_an_interruption_is_raised_where_the_story_waits_and_its_cleanup_runs() -> None:
    ends: list[str] = []

    def tell() -> Steps:
        try:
            yield
        except ClientGone:
            ends.append("gone")
        finally:
            ends.append("cleaned up")

    story = Story(tell(), never)
    story.wake()
    story.client_gone()
    story.client_gone()
    story.wake()
    assert ends == ["gone", "cleaned up"]


def test_an_interruption_while_the_story_runs_is_raised_at_its_next_wait() -> None:
    ends: list[str] = []

    def tell() -> Steps:
        story.interrupt(ClientGone())
        ends.append("went on")
        try:
            yield
        except ClientGone:
            ends.append("gone")

    story = Story(tell(), never)
    story.wake()
    assert ends == ["went on", "gone"]
    assert story.over


def test_a_story_may_wait_again_after_an_interruption() -> None:
    ends: list[str] = []

    def tell() -> Steps:
        try:
            yield
        except ClientGone:
            yield
        ends.append("over")

    story = Story(tell(), never)
    story.wake()
    story.client_gone()
    assert not story.over
    story.wake()
    assert ends == ["over"]


@pytest.mark.parametrize("moment", ["at its beginning", "where it waits", "while it is told of an interruption"])
def test_a_story_that_raises_calls_its_last_resort_and_no_one_else_hears_of_it(moment: str) -> None:
    resorted: list[bool] = []

    def tell() -> Steps:
        if moment == "at its beginning":
            raise ValueError("a bug")
        try:
            yield
        except KeyError:
            raise ValueError("a bug in what handles the interruption") from None
        raise ValueError("a bug")

    story = Story(tell(), lambda: resorted.append(story.over))
    story.wake()
    if moment == "where it waits":
        story.wake()
    elif moment != "at its beginning":
        story.interrupt(KeyError())
    assert resorted == [True]
    assert story.over
    story.wake()
    assert resorted == [True]
