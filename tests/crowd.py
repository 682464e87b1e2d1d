"""Many clients at once, in one event loop, each with a ledger: what was asked, and what exactly came of it.

For the oracle's numbered tokens: `Entry.check` fails on every gap, repetition, mix-up and silent truncation.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kuwa.http.framing import ChunkDecoder
from kuwa.wire.sse import DONE, SseReader

TIMEOUT_S = 60.0


@dataclass
class Entry:
    """One request. `outcome`: whole, left, cut (the connection ended early), or the code of an error."""

    label: str = ""
    tokens: int = 0
    status: int = 0
    outcome: str = ""
    text: str = ""
    error: str = ""
    retry_after: str = ""
    started: float = 0.0
    first_at: float = 0.0
    ended: float = 0.0
    comments: list[str] = field(default_factory=list[str])
    gaps: list[float] = field(default_factory=list[float])

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    def check(self) -> None:
        numbers = [token.partition("~")[0] for token in self.text.split()]
        assert numbers == [f"{self.label}.{number}" for number in range(len(numbers))], self
        assert self.outcome != "cut", self
        assert self.outcome != "whole" or len(numbers) == self.tokens, self


def outcomes(entries: Iterable[Entry]) -> Counter[str]:
    return Counter(entry.outcome for entry in entries)


def percentile(values: Iterable[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


async def ask(
    port: int,
    label: str,
    *,
    model: str = "oracle",
    tokens: int = 20,
    stream: bool = True,
    leave_after: int | None = None,
    headers: Mapping[str, str] | None = None,
    body: Mapping[str, Any] | None = None,
    timeout_s: float = TIMEOUT_S,
    **script: Any,
) -> Entry:
    """Send one chat and read its answer; `leave_after` that many pieces of text the client goes away."""
    entry = Entry(label, tokens, started=time.monotonic())
    message = {
        "model": model,
        "messages": [{"role": "user", "content": "go"}],
        "stream": stream,
        "oracle": {"id": label, "tokens": tokens, **script},
        **(body or {}),
    }
    try:
        async with asyncio.timeout(timeout_s):
            await _ask(port, entry, json.dumps(message).encode(), stream, leave_after, headers or {})
    except TimeoutError:
        entry.outcome = "hung"
    except OSError as error:
        entry.outcome, entry.error = "cut" if entry.status else "unconnected", str(error)
    entry.ended = time.monotonic()
    return entry


async def _ask(
    port: int, entry: Entry, body: bytes, stream: bool, leave_after: int | None, headers: Mapping[str, str]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{extra}"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
            + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        entry.status = int(head.split()[1])
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        entry.retry_after = fields.get("retry-after", "")
        if fields.get("transfer-encoding") == "chunked":
            await _read_stream(reader, entry, leave_after)
        else:
            _take_whole(await reader.readexactly(int(fields["content-length"])), entry)
    except asyncio.IncompleteReadError:
        entry.outcome = "cut"
    finally:
        writer.transport.abort()


async def _read_stream(reader: asyncio.StreamReader, entry: Entry, leave_after: int | None) -> None:
    chunks, events, pieces, last = ChunkDecoder(), SseReader(), 0, entry.started
    entry.outcome = "cut"
    while data := await reader.read(65536):
        for event in events.feed(chunks.feed(data)):
            entry.comments += [comment.decode() for comment in event.comments]
            if event.data == DONE:
                entry.outcome = entry.error or "whole"
                continue
            message = json.loads(event.data)
            if "error" in message:
                entry.error = message["error"]["code"]
                continue
            text = "".join(choice["delta"].get("content") or "" for choice in message["choices"])
            if text:
                now = time.monotonic()
                entry.first_at = entry.first_at or now
                entry.gaps.append(now - last)
                last = now
                entry.text += text
                pieces += 1
                if pieces == leave_after:
                    entry.outcome = "left"
                    return
        if chunks.ended:
            return


def _take_whole(body: bytes, entry: Entry) -> None:
    answer = json.loads(body)
    if entry.status == 200:
        entry.text = answer["choices"][0]["message"]["content"]
        entry.outcome = "whole"
    else:
        entry.error = entry.outcome = answer["error"]["code"]


async def keep_asking(port: int, count: int, at_once: int, name: str, **options: Any) -> list[Entry]:
    """`count` requests, `at_once` of them at any time."""
    numbers = iter(range(count))
    entries: list[Entry] = []

    async def client() -> None:
        for number in numbers:
            entry = await ask(port, f"{name}{number}", **options)
            entries.append(entry)

    await asyncio.gather(*(client() for _ in range(at_once)))
    return entries


async def arrive(port: int, per_second: float, seconds: float, name: str, **options: Any) -> list[Entry]:
    """Requests that come at a steady rate, however long they take."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    asked: list[asyncio.Task[Entry]] = []
    for number in range(int(per_second * seconds)):
        await asyncio.sleep(max(0.0, begin + number / per_second - loop.time()))
        asked.append(loop.create_task(ask(port, f"{name}{number}", **options)))
    return list(await asyncio.gather(*asked))
