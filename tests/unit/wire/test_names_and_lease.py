"""Access codes, request ids, registrations."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.wire import lease, names
from kuwa.wire.errors import InvalidRequest, KuwaError, NoReplica, UpstreamLost


@pytest.mark.parametrize("code", ["debug", "google/gemma-7b-it", "qwen2:0.5b", "模型", "a" * 200, "../x"])
def test_model_names_of_the_field_are_access_codes(code: str) -> None:
    assert names.check_access_code(code) == code


@pytest.mark.parametrize("code", ["", "a b", "a,b", "a\n", "\x00", "a" * 201, "bot/x", "\u3000", "a\u200b"])
def test_odd_access_codes_are_refused(code: str) -> None:
    with pytest.raises(InvalidRequest):
        names.check_access_code(code)


def test_request_ids_never_repeat() -> None:
    ids = names.RequestIds()
    drawn = {ids.draw() for _ in range(1000)}
    assert len(drawn) == 1000
    assert all(re.fullmatch("req_[0-9a-f]{24}", one) for one in drawn)


def test_a_request_id_says_nothing_of_the_next_one() -> None:
    """Two ids drawn in a row differ in half of their bits, as any two random numbers do."""
    ids = names.RequestIds()
    drawn = [int(ids.draw().removeprefix("req_"), 16) for _ in range(2000)]
    differing = [(one ^ another).bit_count() for one, another in itertools.pairwise(drawn)]
    assert 47 < sum(differing) / len(differing) < 49
    assert min(differing) > 16


@pytest.mark.parametrize("value", ["", "x" * 129, "a\r\nb", "é"])
def test_a_request_id_that_cannot_be_echoed_is_not(value: str) -> None:
    assert names.echoable_request_id(value) is None
    assert names.echoable_request_id("trace-1 {}") == "trace-1 {}"


@given(
    st.builds(
        lease.Registration,
        executor_id=st.text(),
        incarnation=st.integers(0, 2**63 - 1),
        access_codes=st.lists(st.text(), min_size=1, max_size=3),
        dialects=st.builds(lease.Dialects, openai=st.text(), v1_0=st.text()),
        concurrency=st.integers(1, 1000),
        load=st.builds(lease.Load, running=st.integers(0, 9)),
    )
)
def test_a_registration_survives_the_way(registration: lease.Registration) -> None:
    assert lease.decode_registration(lease.encode(registration)) == registration


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"executor_id":"a"}',
        '{"executor_id":"a","incarnation":1,"access_codes":[],"dialects":{}}',
        '{"executor_id":"a","incarnation":1,"access_codes":["x"],"dialects":{},"concurrency":0}',
        "[" * 100_000,
        *(
            f'{{"executor_id":"a","access_codes":["x"],"dialects":{{}},"incarnation":1,{field}}}'
            for field in (
                f'"incarnation":{2**63}',
                f'"incarnation":{8 * 10**700}',
                '"incarnation":-4',
                '"incarnation":true',
                '"incarnation":1.5',
                f'"concurrency":{2**30}',
                f'"context_length":{10**400}',
                '"load":{"running":-1}',
                f'"load":{{"waiting":{10**99}}}',
            )
        ),
    ],
)
def test_a_malformed_registration_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="registration"):
        lease.decode_registration(text)


def test_an_old_kernels_plain_text_is_no_lease() -> None:
    assert lease.decode_lease(b"Success") is None
    assert lease.decode_lease(lease.encode(lease.Lease(lease_id="1"))) == lease.Lease(lease_id="1")


def test_every_error_has_the_openai_shape_and_a_code_of_its_own() -> None:
    def tree(cls: type[KuwaError]) -> list[type[KuwaError]]:
        return [cls, *(one for child in cls.__subclasses__() for one in tree(child))]

    errors = [cls for cls in tree(KuwaError) if cls.__module__ == "kuwa.wire.errors"]
    codes = [cls.code for cls in errors if cls is not KuwaError]
    assert len(codes) == len(set(codes))
    assert set(NoReplica("gone").payload()["error"]) == {"message", "type", "param", "code"}
    assert all(cls.retry_after_s is not None for cls in errors if cls.status in (429, 503))


def test_the_closing_events_of_a_broken_stream_cannot_be_folded_into_a_cut_one() -> None:
    from kuwa.wire.sse import SseReader

    events = list(SseReader().feed(b'data: {"half":' + UpstreamLost("gone").event()))
    assert [event.data[:9] for event in events] == [b'{"half":', b'{"error":', b"[DONE]"]
