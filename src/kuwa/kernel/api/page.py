"""The kernel's pages for people: plain HTML without scripts, everything escaped, served under a strict policy."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape

from starlette.responses import HTMLResponse

STYLE = """
:root{color-scheme:light dark}
:root{--line:color-mix(in srgb,currentColor 16%,transparent);--dim:color-mix(in srgb,currentColor 62%,transparent)}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,"Noto Sans TC",sans-serif;margin:0 auto;padding:2.5rem 1.25rem;max-width:72rem}
h1{font-size:1.5rem;margin:0 0 .25rem}h2{font-size:1.05rem;margin:2.25rem 0 .5rem}
p{margin:.5rem 0}.dim{color:var(--dim)}a{color:inherit}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.45rem .9rem .45rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--dim);font-size:.85rem}
td.n,th.n{text-align:right}
code,pre,td.m{font-family:ui-monospace,monospace;font-size:.9em}td.m{overflow-wrap:anywhere}
pre{background:color-mix(in srgb,currentColor 7%,transparent);border-radius:.5rem;padding:.9rem 1rem;overflow-x:auto}
.state::before{content:"";display:inline-block;width:.6em;height:.6em;border-radius:50%;margin-right:.45em}
.ready::before{background:#1a9c5b}.starting::before{background:#3b82d9}
.suspect::before,.draining::before{background:#d99a1a}.ejected::before,.gone::before{background:#cf3f3f}
summary{cursor:pointer;color:var(--dim);margin-top:2rem}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Cell:
    """One cell of a table: text, which is escaped, and the class names that style it."""

    __slots__ = ("style", "text", "word")

    def __init__(self, text: object, style: str = "", word: str = "") -> None:
        self.text = str(text)
        self.style = style
        self.word = word

    def html(self) -> str:
        content = escape(self.text)
        if self.word:
            content = f'<span class="state {escape(self.word)}">{content}</span>'
        return f'<td class="{self.style}">{content}</td>' if self.style else f"<td>{content}</td>"


def table(heads: Sequence[tuple[str, str]], rows: Iterable[Sequence[Cell]]) -> str:
    """A table; each head is its text and its style (`n`: a number)."""
    top = "".join(f'<th class="{style}">{escape(text)}</th>' for text, style in heads)
    body = "".join(f"<tr>{''.join(cell.html() for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def respond(title: str, body: str, *, refresh_s: int = 0) -> HTMLResponse:
    """A whole page. `body` is HTML whose texts are escaped already."""
    refresh = f'<meta http-equiv="refresh" content="{refresh_s}">' if refresh_s else ""
    return HTMLResponse(
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>{refresh}'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1>{body}</body></html>\n",
        headers=HEADERS,
    )


def duration(seconds: float) -> str:
    """A length of time as people say it: `42 s`, `7 min`, `3 h 05 min`, `12 d 4 h`."""
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
