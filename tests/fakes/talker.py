"""An executor for tests of what people see: what it answers is said by the last thing the user said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from kuwa.executor import Chunk, Finish, LLMExecutor, Reasoning, Request
from kuwa.wire.errors import EngineLost

MARKDOWN = """\
# Title

A paragraph with **bold** words, a <tag> and a [link](https://kuwa.example/page).
second line

| a | b |
|---|---|
| 1 | 2 |

```python
print("one line that is rather long, and is to be copied whole: 0123456789 0123456789")
```

1. first
2. second
"""
ESCAPES = "before\x1b]0;owned\x07\x1b[2J\x1b[31mafter\x9b5A\rend"


class Talker(LLMExecutor):
    LLM_name = "talker"

    async def llm_compute(self, request: Request) -> AsyncIterator[Chunk]:
        said = request.messages[-1]["content"]
        match said.split()[0]:
            case "messages":
                yield json.dumps(request.messages, ensure_ascii=False)
            case "markdown":
                for character in MARKDOWN:
                    yield character
            case "escapes":
                yield ESCAPES
            case "think":
                yield Reasoning("pondering")
                yield "the answer"
            case "fail":
                yield "half of it"
                raise EngineLost("The engine was told to fail.")
            case "cut":
                yield "so far"
                yield Finish("length")
            case "slow":
                for number in range(1000):
                    yield f"word{number} "
                    await asyncio.sleep(0.05)
            case _:
                yield f"you said: {said}"


if __name__ == "__main__":
    Talker().run()
