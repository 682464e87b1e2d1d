"""A story is driven by signals, one step after another, and can be interrupted where it waits."""

from __future__ import annotations

import pytest

from kuwa.kernel.story import Signal, Story
from kuwa.wire.errors import ClientGone


def test_a_story_runs_at_once_until_it_waits_and_on_in_the_call_that_fires() -> None:
    steps: list[str] = []
    signal: Signal[str] = Signal()

    async def tell() -> None:
        steps.append("begun")
        steps.append(await signal)

    story = Story(tell())
    story.start()
    assert steps == ["begun"]
    assert not story.over
    signal.fire("fired")
    assert steps == ["begun", "fired"]
    assert story.over


def test_a_signal_fired_before_it_is_awaited_does_not_make_the_story_wait() -> None:
    signal: Signal[int] = Signal()
    signal.fire(1)
    signal.fire(2)
    heard: list[int] = []

    async def tell() -> None:
        heard.append(await signal)

    Story(tell()).start()
    assert heard == [1]


def test_a_story_that_fires_its_own_next_signal_is_not_entered_twice() -> None:
    first: Signal[None] = Signal()
    second: Signal[str] = Signal()
    heard: list[str] = []

    async def tell() -> None:
        await first
        second.fire("from inside")
        heard.append(await second)

    story = Story(tell())
    story.start()
    first.fire(None)
    assert heard == ["from inside"]
    assert story.over


def test_an_interruption_is_raised_where_the_story_waits_and_its_cleanup_runs() -> None:
    signal: Signal[None] = Signal()
    ends: list[str] = []

    async def tell() -> None:
        try:
            await signal
        except ClientGone:
            ends.append("gone")
        finally:
            ends.append("cleaned up")

    story = Story(tell())
    story.start()
    story.interrupt(ClientGone())
    story.interrupt(ClientGone())
    signal.fire(None)
    assert ends == ["gone", "cleaned up"]


def test_an_interruption_while_the_story_runs_is_raised_at_its_next_wait() -> None:
    never: Signal[None] = Signal()
    ends: list[str] = []

    async def tell() -> None:
        story.interrupt(ClientGone())
        ends.append("went on")
        try:
            await never
        except ClientGone:
            ends.append("gone")

    story = Story(tell())
    story.start()
    assert ends == ["went on", "gone"]


def test_a_failed_signal_raises_its_error_in_the_story() -> None:
    signal: Signal[None] = Signal()
    heard: list[str] = []

    async def tell() -> None:
        try:
            await signal
        except ValueError as error:
            heard.append(str(error))

    Story(tell()).start()
    signal.fail(ValueError("no"))
    assert heard == ["no"]


def test_an_error_that_the_story_does_not_handle_reaches_whoever_ran_it() -> None:
    async def tell() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        Story(tell()).start()
