"""The kernel's log: structlog and the standard library's loggers, one line an event, to standard error."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from kuwa.wire.lines import indented, one_line


def configure(level: str) -> None:
    """Set up logging for this process; `level` is one of the standard library's names."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.stdlib.ExtraAdder(),
    ]
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        exception_formatter=_traceback,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _on_one_line, console],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared[:-1],
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _on_one_line(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What replicas and clients have said takes no other line than that of the event, and no terminal obeys it."""
    del logger, method
    for name, value in event.items():
        if name == "stack":
            event[name] = indented(str(value))
        elif name not in ("exc_info", "exception"):
            event[name] = one_line(value if isinstance(value, str) else repr(value))
    return event


def _traceback(out: TextIO, exc_info: Any) -> None:
    """The default one prints local variables too, and with them what clients have sent."""
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    out.write(indented(text.getvalue()))
