"""A small client of a Kuwa kernel, for Python and for Kuwa's own commands.

    from kuwa.client import Client

    client = Client("http://127.0.0.1:9000")
    print(await client.models())
    async for delta in client.chat("welcome", [{"role": "user", "content": "Hello!"}]):
        print(delta.text, end="", flush=True)

Every failure is a `KuwaError`: `NoKernel` where nobody answers, `Refused` with the kernel's own words where it said
no. Closing the iterator of a chat, or cancelling the task that reads it, ends the request at once.
"""

from __future__ import annotations

from kuwa.client.client import Client, Delta, Message, NoKernel, Refused
from kuwa.wire.openai import Usage
from kuwa.wire.report import Queue, Replica, Report

__all__ = [
    "Client",
    "Delta",
    "Message",
    "NoKernel",
    "Queue",
    "Refused",
    "Replica",
    "Report",
    "Usage",
]
