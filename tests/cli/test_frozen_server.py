"""`migrate watch` of a real server that stops answering without closing its connections."""

from __future__ import annotations

import os
import signal

from sagastore.cli import status_watch
from tests.cli.command import Sagastore
from tests.cli.terminal import Terminal
from tests.support.server_process import ServerProcess
from tests.support.waiting import eventually

STALE = "STALE: no update from the server for "


def test_watch_marks_the_page_of_a_frozen_server_as_stale(
    running_server: ServerProcess, own_cli: Sagastore
) -> None:
    # Within 2 s of the last update.
    assert status_watch._STALE_SECONDS + status_watch._CHECK_SECONDS < 2
    terminal = Terminal(own_cli, "migrate", "watch")
    terminal.wait_for("[sqlite-only]")
    os.kill(running_server.pid, signal.SIGSTOP)
    try:
        terminal.wait_for(STALE)
    finally:
        os.kill(running_server.pid, signal.SIGCONT)
    # The mark is at the top, where every terminal shows it, and goes when the server is back.
    shown = terminal.text
    assert shown.rindex(STALE) < shown.rindex("[sqlite-only]")
    eventually(lambda: STALE not in terminal.text[terminal.text.rindex(STALE) + len(STALE) :])
    seen = len(terminal.text)
    eventually(lambda: "[sqlite-only]" in terminal.text[seen:])
    terminal.type("\x03")
    assert terminal.end() == 0
