"""A stream computed again: what was delivered is found and dropped, however the events are cut; the rest passes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.kernel.resume import MAX_JOURNAL_BYTES, Journal, Journals, Replay, StreamDiffers
from kuwa.wire import resume
from kuwa.wire.resume import Announcement
from kuwa.wire.sse import blocks_of, data_of

ANNOUNCED = Announcement("f", "h", 0, 7)
Piece = tuple[str, str]


def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "x", "created": 5, "choices": [choice]}).encode() + b"\n\n"


def call(index: int, arguments: str, head: bool) -> dict[str, Any]:
    function = {"name": f"f{index}", "arguments": arguments} if head else {"arguments": arguments}
    return {"tool_calls": [{"index": index, **({"id": f"c{index}"} if head else {}), "function": function}]}


ROLE = event({"role": "assistant", "content": ""})
USAGE = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


def said(events: bytes) -> list[Piece]:
    """What a client makes of events: texts joined by kind."""
    found: list[Piece] = []
    for block in blocks_of(events):
        data = data_of(block)
        if not data.startswith(b"{"):
            continue
        message = json.loads(data)
        for choice in message["choices"]:
            delta = choice["delta"]
            found += [(name, delta.get(name) or "") for name in ("reasoning_content", "content")]
            for one in delta.get("tool_calls") or ():
                found.append((f"call {one['index']}", one.get("id", "") + one["function"].get("name", "")))
                found.append((f"arguments {one['index']}", one["function"]["arguments"]))
            found.append(("finish", choice["finish_reason"] or ""))
        found.append(("usage", "1" if message.get("usage") else ""))
    joined: list[Piece] = []
    for name, text in found:
        if not text:
            continue
        if joined and joined[-1][0] == name:
            joined[-1] = (name, joined[-1][1] + text)
        else:
            joined.append((name, text))
    return joined


def stream(reasoning: str, text: str, arguments: str, cuts: list[int]) -> list[bytes]:
    """The same answer, cut into events at these places."""
    events = [ROLE]
    for name, whole in (("reasoning_content", reasoning), ("content", text)):
        edges = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
        events += [event({name: whole[a:b]}) for a, b in itertools.pairwise(edges) if b > a]
    if arguments:
        edges = sorted({0, len(arguments), *(cut % (len(arguments) + 1) for cut in cuts)})
        pieces = [arguments[a:b] for a, b in itertools.pairwise(edges)]
        events += [event(call(0, piece, head=index == 0)) for index, piece in enumerate(pieces)]
    return [*events, event({}, "stop"), USAGE, DONE]


def journal_of(events: list[bytes]) -> Journal:
    journal = Journal(Journals())
    kept = journal.begin(ANNOUNCED)
    for one in events:
        kept += b"%x\r\n%b\r\n" % (len(one), one)
    return journal


def again(replay: Replay, events: list[bytes]) -> bytes:
    return b"".join(replay.take(one) if not replay.done else one for one in events)


TEXT = st.text(max_size=12)
CUTS = st.lists(st.integers(0, 30), max_size=4)


@given(TEXT, st.text(min_size=1, max_size=30), TEXT, CUTS, CUTS, st.integers(2, 60))  # a role alone is held back
def test_delivered_and_new_together_are_the_whole_answer(
    reasoning: str, text: str, arguments: str, first_cuts: list[int], second_cuts: list[int], place: int
) -> None:
    first = stream(reasoning, text, arguments, first_cuts)
    second = stream(reasoning, text, arguments, second_cuts)
    delivered = first[: min(place, len(first) - 1)]
    replay = journal_of(delivered).replay()
    assert replay is not None
    new = again(replay, second)
    assert replay.done
    assert said(b"".join(delivered) + new) == said(b"".join(first))
    assert (b"".join(delivered) + new).count(b'"role"') == 1
    assert new.endswith(DONE)


@given(st.text(min_size=2, max_size=30), CUTS, st.data())
def test_the_first_difference_ends_it(text: str, cuts: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(text) - 1))
    other = text[:place] + ("x" if text[place] != "x" else "y") + text[place + 1 :]
    replay = journal_of([ROLE, event({"content": text})]).replay()
    assert replay is not None
    with pytest.raises(StreamDiffers):
        again(replay, stream("", other, "", cuts))


def test_an_answer_that_ends_too_soon_differs() -> None:
    replay = journal_of([ROLE, event({"content": "one two"})]).replay()
    assert replay is not None
    with pytest.raises(StreamDiffers):
        again(replay, stream("", "one", "", []))


def test_what_is_no_stream_of_events_is_not_gone_on_with() -> None:
    assert Journal(Journals()).replay() is None
    for odd in (b"data: {\n\n", b'data: {"choices": 5}\n\n', b': k x\ndata: {"choices":[]}\n\n'):
        assert journal_of([odd]).replay() is None
    dropped = journal_of([ROLE])
    dropped.drop()
    assert dropped.replay() is None


def test_the_request_carries_seed_ids_and_the_first_streams_time() -> None:
    events = [ROLE, resume.ids_line([3, 10]) + event({"content": "a"}), resume.ids_line([17]) + event({"content": "b"})]
    replay = journal_of(events).replay()
    assert replay is not None
    asked = json.loads(replay.request(b'{"model": "m", "n": 1 }'))
    assert asked["model"] == "m"
    assert asked["kuwa_resume"] == {
        "v": 1, "seed": 7, "fingerprint": "f", "prompt_hash": "h", "created": 5, "ids": [3, 10, 17],
    }  # fmt: skip


def test_an_announcement_is_read_as_it_was_written() -> None:
    assert resume.announcement_in(resume.announce(ANNOUNCED)) == ANNOUNCED
    for odd in (b": r\n\n", b": r a b c d\n\n", b": r a b 1 2 3\n\n", b"data: : r a b 1 2\n\n"):
        assert resume.announcement_in(odd) is None


def written(journal: Journal, count: int) -> bool:
    """Whether so many bytes more were kept."""
    if journal.frames is None:
        return False
    journal.frames += b"x" * count
    return len(journal.frames) <= journal.room or journal.grow()


def test_a_stream_is_kept_up_to_its_bound() -> None:
    journals = Journals()
    journal = Journal(journals)
    journal.begin(ANNOUNCED)
    assert written(journal, MAX_JOURNAL_BYTES)
    assert journals.granted == MAX_JOURNAL_BYTES
    assert not written(journal, 1)
    assert (journal.frames, journal.replay(), journals.granted) == (None, None, 0)
    journal.drop()
    assert journals.granted == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40_000)), max_size=60))
def test_all_streams_together_are_kept_up_to_theirs(writes: list[tuple[int, int]]) -> None:
    """At no time is more kept than the bound says; who finds no room, and nobody else, is no longer kept."""
    journals = Journals(100_000)
    kept = [Journal(journals) for _ in range(6)]
    for journal in kept:
        journal.begin(ANNOUNCED)
    for number, count in writes:
        before = [journal.frames is not None for journal in kept]
        went = written(kept[number], count)
        after = [journal.frames is not None for journal in kept]
        assert after == [went if place == number else was for place, was in enumerate(before)]
        assert journals.granted == sum(journal.room for journal in kept) <= journals.limit
        assert all(journal.bytes <= journal.room for journal in kept)
    for journal in kept:
        journal.drop()
    assert journals.granted == 0
