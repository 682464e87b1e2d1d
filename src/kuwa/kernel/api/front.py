"""The page at `/`: what is served, how to ask it, and how to add to it. For people; programs read `/v1/models`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from html import escape

from starlette.requests import Request
from starlette.responses import Response

from kuwa import __version__
from kuwa.kernel.api import page
from kuwa.kernel.api.page import Cell
from kuwa.wire.report import Replica, Report
from kuwa.words import Words, preferred
from kuwa.words.phrases import curl_command, kernel_option

# The best state that any executor of a model is in is the model's.
BEST_FIRST = ("ready", "suspect", "ejected", "starting", "draining")
# Several ways into one.
MARK = (
    '<svg viewBox="0 0 48 48" fill="none" stroke="currentColor" stroke-width="3.5" stroke-linecap="round" '
    'aria-hidden="true"><path d="M6 42V22a18 18 0 0 1 36 0v20"/><path d="M15 42V23a9 9 0 0 1 18 0v19"/>'
    '<path d="M24 42v-8"/></svg>'
)


class FrontPage:
    """`report` makes the kernel's report of this moment."""

    def __init__(self, report: Callable[[], Report]) -> None:
        self._report = report

    async def page(self, request: Request) -> Response:
        words = preferred(request.headers.get("accept-language", ""))
        base = f"{request.url.scheme}://{request.url.netloc}"
        report = self._report()
        body = [_header(words)]
        body += _served(words, base, report.by_code())
        body += _ask(words, base, report)
        body += _add(words, base)
        body += _more(words)
        return page.respond("Kuwa", "".join(body), language=words.language)


def _header(words: Words) -> str:
    line = f"{words.page.tagline} · {words.page.version.format(version=__version__)}"
    return f'<header>{MARK}<div><h1>Kuwa</h1><p class="dim">{escape(line)}</p></div></header>'


def _served(words: Words, base: str, models: dict[str, list[Replica]]) -> list[str]:
    title = f"<h2>{escape(words.page.served)}</h2>"
    if not models:
        return [title, f"<p>{escape(words.page.none)}</p>", _shell("kuwa-executor debug" + kernel_option(base))]
    heads = (
        (_capital(words.access_code), ""),
        (_capital(words.executor), ""),
        (_capital(words.state), ""),
        (words.page.executors, "n"),
        (words.page.context, "n"),
    )
    return [title, page.table(heads, (_row(words, code, replicas) for code, replicas in models.items()))]


def _row(words: Words, code: str, replicas: Sequence[Replica]) -> list[Cell]:
    state = _state(code, replicas)
    kinds = sorted({replica.kind for replica in replicas})
    lengths = [replica.context_length for replica in replicas if replica.context_length > 0]
    return [
        Cell(code, "m"),
        Cell(", ".join(kinds)),
        Cell(words.states.get(state, state), word=state),
        Cell(len(replicas), "n"),
        Cell(words.page.tokens.format(count=min(lengths)) if lengths else "", "n"),
    ]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _state(code: str, replicas: Sequence[Replica]) -> str:
    states = {replica.state_at(code) for replica in replicas}
    return next((state for state in BEST_FIRST if state in states), "gone")


def _ask(words: Words, base: str, report: Report) -> list[str]:
    parts = [f"<h2>{escape(words.page.ask)}</h2>"]
    code = report.suggestion()
    if code is None:
        return [*parts, f'<p class="dim">{escape(words.page.none_ready)}</p>'] if report.replicas else []
    return [
        *parts,
        f"<h3>{escape(words.page.ask_by_curl)}</h3>",
        _shell(curl_command(base, code, words.hello)),
        f"<h3>{escape(words.page.ask_in_terminal)}</h3>",
        _shell(f"kuwa chat {shlex.quote(code)}{kernel_option(base)}"),
        f"<p>{escape(words.page.ask_by_library)}</p>",
        _shell(f"{base}/v1"),
    ]


def _add(words: Words, base: str) -> list[str]:
    option = kernel_option(base)
    server = "--base_url http://localhost:8000/v1 --api_key dummy --model org/name"
    ways = (
        (words.page.add_gguf, f"kuwa-executor llamacpp --model_path model.gguf --access_code my-model{option}"),
        (words.page.add_server, f"kuwa-executor chatgpt {server} --access_code vllm{option}"),
        (words.page.add_own, f"kuwa-executor ./my_executor.py --access_code mine{option}"),
        (words.page.add_list, "kuwa-executor --list"),
    )
    parts = [f"<h3>{escape(title)}</h3>{_shell(command)}" for title, command in ways]
    return [f"<h2>{escape(words.page.add)}</h2>", *parts]


def _more(words: Words) -> list[str]:
    links = (
        ("/v1.0/worker/debug", words.page.link_status),
        ("/v1/models", words.page.link_models),
        ("/metrics", words.page.link_metrics),
        ("/health", words.page.link_health),
    )
    items = "".join(f'<li><a href="{path}">{escape(text)}</a></li>' for path, text in links)
    return [f'<h2>{escape(words.page.more)}</h2><ul class="links">{items}</ul>']


def _shell(command: str) -> str:
    return f"<pre>{escape(command)}</pre>"
