"""Tells a person at a terminal that a command waits for its server."""

from __future__ import annotations

import logging
import sys

from sagastore.cli.failures import complain, with_option_names

__all__ = ["show_retries"]


class _FirstRetry(logging.Handler):
    """Writes the first message of the client library that a call is being retried."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the message, and nothing from then on."""
        logging.getLogger(record.name).removeHandler(self)
        complain(with_option_names(record.getMessage()))


def show_retries() -> None:
    """Show the first retry that takes noticeable time, if standard error is a terminal."""
    if not sys.stderr.isatty():
        return
    log = logging.getLogger("sagastore")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(_FirstRetry())
