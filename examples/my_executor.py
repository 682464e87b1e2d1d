"""The smallest useful executor: it counts the words of what it is told. Start it with

    kuwa-executor ./my_executor.py

and ask the kernel for the model "my_executor".
"""

from collections.abc import AsyncIterator

from kuwa.executor import LLMExecutor, Request


class MyExecutor(LLMExecutor):
    def extend_arguments(self, parser):
        parser.add_argument("--greeting", default="Hello!", help="How each answer begins")

    def setup(self):
        self.answered = 0  # here a real executor loads its model

    async def llm_compute(self, request: Request) -> AsyncIterator[str]:
        self.answered += 1
        words = str(request.messages[-1]["content"]).split()
        yield f"{self.args.greeting} That is answer {self.answered}: "
        yield f"your message has {len(words)} words."


if __name__ == "__main__":
    MyExecutor().run()
