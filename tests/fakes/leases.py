"""Many executors in one process: each has the framework's own server and lease, so that a kernel sees as many.

python leases.py KERNEL_URL COUNT
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator

from kuwa.executor import LLMExecutor, Request
from kuwa.executor.invocation import Invocation, invoked
from kuwa.executor.lease import LeaseLoop
from kuwa.executor.server import ExecutorServer
from kuwa.http.server import Server, run
from kuwa.wire.lease import Dialects, Registration

INCARNATIONS = itertools.count(1)


class Parrot(LLMExecutor):
    LLM_name = "parrot"
    concurrency = 4

    async def llm_compute(self, request: Request) -> AsyncIterator[str]:
        yield request.messages[-1]["content"]


async def serve(number: int) -> LeaseLoop:
    executor = Parrot()
    behind = ExecutorServer(executor)
    behind.ready()
    http = Server(hot=behind.hot(), app=behind.app())
    origin = f"http://127.0.0.1:{await http.listen('127.0.0.1', 0)}"
    incarnation = next(INCARNATIONS)

    def describe() -> Registration:
        return Registration(
            executor_id=f"exe_{number}",
            incarnation=incarnation,
            access_codes=["parrot"],
            dialects=Dialects(openai=origin + "/v1", v1_0=origin + "/chat"),
            concurrency=4,
        )

    lease = LeaseLoop(executor.settings, origin + "/chat", describe, sys.exit)
    lease.start()
    return lease


async def main(kernel_url: str, count: int) -> None:
    with invoked(Invocation("parrot", ["--kernel_url", kernel_url], {}, "parrot")):
        leases = [await serve(number) for number in range(count)]
    await asyncio.Event().wait()
    del leases


if __name__ == "__main__":
    run(main(sys.argv[1], int(sys.argv[2])))
