"""Logs on standard error: lines for people on a terminal, JSON everywhere else. Levels say what the reader does.

error      act now: something is broken that does not mend itself
warning    look at it when you have time: it was survived, and may come back
info       nothing: what changed, for the record
debug      nothing: for who works on vmferry itself
"""

from __future__ import annotations

import logging
import sys

import structlog


class _Forward(logging.Handler):
    """Brings what libraries log into our form."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record."""
        log = structlog.get_logger(record.name)
        log.log(record.levelno, record.getMessage(), exc_info=record.exc_info)


def set_up_logs(*, debug: bool = False) -> None:
    """Set logging up for this process; libraries are heard from warning on.

    Tracebacks come without the values of variables: one of them may be a stream's key.
    """
    terminal = sys.stderr.isatty()
    renderer: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback)]
        if terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if debug else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward()], force=True)
