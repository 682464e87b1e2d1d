"""The kernel's pages for people: plain HTML without scripts, everything escaped, served under a strict policy."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape

from starlette.responses import HTMLResponse

STYLE = """
:root{color-scheme:light dark;--ink:light-dark(#1d2329,#e6e9ec);--paper:light-dark(#fff,#14181c);
--dim:light-dark(#5b6670,#9aa5af);--line:light-dark(#dfe4e8,#2c343b);--soft:light-dark(#f4f6f8,#1d2329);
--leaf:light-dark(#0e7a5f,#4cc2a0)}
*{box-sizing:border-box}
body{font:16px/1.6 system-ui,"Noto Sans TC","Noto Sans CJK TC",sans-serif;margin:0 auto;padding:2.5rem 1.25rem 4rem;
max-width:60rem;color:var(--ink);background:var(--paper)}
body.wide{max-width:84rem}
h1{font-size:1.6rem;line-height:1.25;margin:0}h2{font-size:1.1rem;margin:2.5rem 0 .6rem}
h3{font-size:.95rem;margin:1.25rem 0 .3rem}
p{margin:.5rem 0}.dim{color:var(--dim)}a{color:var(--leaf);text-underline-offset:.2em}
header{display:flex;gap:1rem;align-items:center;margin-bottom:1.5rem}
header svg{flex:none;width:3rem;height:3rem;color:var(--leaf)}header p{margin:.15rem 0 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.5rem .9rem .5rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--dim);font-size:.85rem;white-space:nowrap}
td.n,th.n{text-align:right}
th:last-child,td:last-child{padding-right:0}
code,pre,td.m{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.875em}
td.m{overflow-wrap:anywhere}
pre{background:var(--soft);border:1px solid var(--line);border-radius:.5rem;margin:.4rem 0;padding:.75rem 1rem;
white-space:pre-wrap;overflow-wrap:anywhere}
.state{white-space:nowrap}
.state::before{content:"";display:inline-block;width:.6em;height:.6em;border-radius:50%;margin-right:.45em}
.ready::before{background:#1a9c5b}.starting::before{background:#3b82d9}
.suspect::before,.draining::before{background:#d99a1a}.ejected::before,.gone::before{background:#cf3f3f}
ul.links{list-style:none;display:flex;flex-wrap:wrap;gap:.4rem 1.5rem;padding:0;margin:.5rem 0}
summary{cursor:pointer;color:var(--dim);margin-top:2rem}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "vary": "accept, accept-language",
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


def respond(title: str, body: str, *, refresh_s: int = 0, language: str = "en", wide: bool = False) -> HTMLResponse:
    """A whole page. `body` is HTML whose texts are escaped already, its heading included. `language` is a BCP 47 tag,
    and the page is said to depend on what the browser asked for.
    """
    refresh = f'<meta http-equiv="refresh" content="{refresh_s}">' if refresh_s else ""
    return HTMLResponse(
        "<!doctype html>\n"
        f'<html lang="{language}"><head><meta charset="utf-8"><title>{escape(title)}</title>{refresh}'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f'<body class="{"wide" if wide else "narrow"}">{body}</body></html>\n',
        headers=HEADERS,
    )
