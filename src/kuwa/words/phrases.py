"""Text that is the same in every language: commands to paste into a shell, and durations. Pure."""

from __future__ import annotations

import json
import shlex

from kuwa.home import DEFAULT_KERNEL_URL


def kernel_option(kernel_url: str) -> str:
    """The option that a command needs to find the kernel; empty for the default address."""
    return "" if kernel_url == DEFAULT_KERNEL_URL else f" --kernel_url {shlex.quote(kernel_url + '/')}"


def curl_command(kernel_url: str, access_code: str, message: str) -> str:
    """A command that streams an answer, in the quoting of every POSIX shell."""
    request = {"model": access_code, "stream": True, "messages": [{"role": "user", "content": message}]}
    return (
        f"curl -N {shlex.quote(kernel_url + '/v1/chat/completions')} -H 'Content-Type: application/json' "
        f"-d {shlex.quote(json.dumps(request, ensure_ascii=False))}"
    )


def duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3 h 05 min`, `12 d 4 h`."""
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
