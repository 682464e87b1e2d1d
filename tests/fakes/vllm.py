"""As much of `vllm serve` as an executor in front of it can tell: a real process with vLLM's command line, routes,
key, errors and streams. What it answers says what it was asked. Test files make a command `vllm` of it.

A model path that holds "broken" cannot be loaded. A message "die" ends the process in the middle of its answer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTEXT = 64


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="vllm")
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    for option in ("served-model-name", "max-num-seqs", "dtype", "max-num-batched-tokens", "chat-template", "revision"):
        parser.add_argument(f"--{option}")
    args = parser.parse_args(argv)
    if "broken" in args.model:
        sys.stderr.write("(EngineCore pid=7) ERROR 11-22 21:00:00 [core.py:1] Engine core failed to start.\n")
        sys.stderr.write("ValueError: its weights are no weights\n")
        sys.exit(1)
    sys.stderr.write(f"vllm was started with {' '.join(argv)}\n")

    class Handler(_Handler):
        model = args.served_model_name

    _Server((args.host, args.port), Handler).serve_forever()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that resets its connection is no fault of the server's: no traceback in the log."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model = ""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass

    def do_GET(self) -> None:
        models = {"data": [{"id": self.model, "max_model_len": CONTEXT}]}
        self._json(200, {} if self.path == "/health" else models)

    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        key = os.environ["VLLM_API_KEY"]
        texts = [str(message["content"]) for message in body.get("messages", [])] or [body["prompt"]]
        words = sum(len(text.split()) for text in texts)
        if self.headers.get("authorization") != f"Bearer {key}":
            self._json(401, {"error": "Unauthorized"})
        elif body["model"] != self.model:
            self._json(404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}})
        elif words > CONTEXT:
            said = f"This model's maximum context length is {CONTEXT} tokens, and the request has {words}."
            self._json(400, {"error": {"message": said, "type": "BadRequestError", "code": 400}})
        else:
            self._stream(body, texts, words)

    def _stream(self, body: dict[str, Any], texts: list[str], words: int) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        asked = {name: value for name, value in body.items() if name not in ("messages", "prompt")}
        answer = [f"{texts[-1]} ", "海🌊 ", json.dumps(asked, sort_keys=True)]
        for index, piece in enumerate(answer):
            part = {"delta": {"content": piece}} if "messages" in body else {"text": piece}
            finish = "stop" if index == len(answer) - 1 else None
            self._event({"choices": [{"index": 0, **part, "finish_reason": finish}]})
            if texts[-1] == "die":
                os._exit(9)
        counted = {"prompt_tokens": words, "completion_tokens": 3, "total_tokens": words + 3}
        self._event({"choices": [], "usage": counted})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _event(self, fields: dict[str, Any]) -> None:
        event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": self.model, **fields}
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def _json(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    main(sys.argv[1:])
