"""Warnings of the library, on the standard error."""

from __future__ import annotations

import logging
import sys

from solon.cli.text import clean


class Messages(logging.Handler):
    """Writes to whatever the standard error is at the time, because a progress bar may stand in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record's level and message."""
        print(clean(f"{record.levelname.lower()}: {record.getMessage()}"), file=sys.stderr)


def show_warnings() -> None:
    """Print what the library logs as a warning or worse; calling it again changes nothing."""
    log = logging.getLogger("solon")
    if not any(isinstance(handler, Messages) for handler in log.handlers):
        log.addHandler(Messages(level=logging.WARNING))
