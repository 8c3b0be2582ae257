"""Exit, fork and interruption of a process with a client."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and forks of POSIX")


def run(program: str, server: ServerProcess) -> subprocess.CompletedProcess[str]:
    """Run a program with warnings as errors; it must say nothing on standard error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + program, server.address],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done


PREAMBLE = """
import asyncio, os, sys, threading
from sagastore import *
address = sys.argv[1]
HELLO = Message("openai", "user", "hello")
"""

# A call to a server that accepts the connection and does not respond.
SILENCE = """
import socket, warnings
warnings.simplefilter("ignore", ResourceWarning)  # The sockets of this test itself.
silence = socket.create_server(("127.0.0.1", 0))
client = Client(f"127.0.0.1:{silence.getsockname()[1]}", timeout=600)
def ask():
    try:
        client.get("x")
    except (RuntimeError, SagaStoreError):
        pass  # The client was closed.
"""


def test_unclosed_client_exits_cleanly(shared_server: ServerProcess) -> None:
    run("client = Client(address); client.save(HELLO)", shared_server)


def test_unused_client_exits_cleanly(shared_server: ServerProcess) -> None:
    run("Client(address)", shared_server)


def test_abandoned_iterators_exit_cleanly(shared_server: ServerProcess) -> None:
    program = """
client = Client(address)
for _ in range(3):
    client.save(HELLO)
export = client.export(batch_size=1)
next(export)
acks = client.bulk_save_stream((HELLO for _ in range(10)), batch_size=1)
next(acks)
"""
    run(program, shared_server)


def test_exit_during_a_call_is_clean(shared_server: ServerProcess) -> None:
    program = (
        SILENCE
        + """
threading.Thread(target=ask, daemon=True).start()
assert silence.accept()
"""
    )
    run(program, shared_server)


def test_event_loops_and_blocking_clients_coexist(shared_server: ServerProcess) -> None:
    program = """
async def use(client):
    for _ in range(50):
        await client.get(id)
async def main():
    async with AsyncClient(address) as client:
        await asyncio.gather(use(client), use(client), asyncio.to_thread(block))
def block():
    for _ in range(50):
        blocking.get(id)
with Client(address) as blocking, Client(address) as other:
    id = other.save(HELLO).id
    threads = [threading.Thread(target=block) for _ in range(3)]
    threads += [threading.Thread(target=lambda: asyncio.run(main()))]
    for thread in threads: thread.start()
    asyncio.run(main())
    for thread in threads: thread.join()
"""
    run(program, shared_server)


def test_use_after_fork_is_reported(shared_server: ServerProcess) -> None:
    program = """
import signal, warnings
warnings.simplefilter("ignore")  # Python itself warns of forks beside threads.
client = Client(address)
client.health()
child = os.fork()
if child == 0:
    signal.alarm(20)
    messages = []
    for attempt in (client.health, lambda: Client(address).health(), client.close,
                    lambda: asyncio.run(AsyncClient(address).health())):
        try:
            attempt()
        except RuntimeError as error:
            messages.append(str(error))
    os._exit(0 if len(messages) == 3 and all("fork" in line for line in messages) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
client.health()
"""
    # gRPC's core has its own word about forks; what matters is the outcome.
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + program, shared_server.address],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_client_created_after_the_fork_works(shared_server: ServerProcess) -> None:
    program = """
child = os.fork()
if child == 0:
    with Client(address) as client:
        client.save(HELLO)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
with Client(address) as client:
    client.save(HELLO)
"""
    run(program, shared_server)


@pytest.mark.parametrize("wakes", [True, False], ids=["wakes", "wakes-nothing"])
def test_ctrl_c_ends_a_blocking_call(shared_server: ServerProcess, wakes: bool) -> None:
    """A signal that another thread receives does not wake the main thread, which handles it.

    The same happens if it arrives just before the main thread waits.
    """
    masked = "" if wakes else "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})"
    program = (
        SILENCE
        + f"""
import signal
def interrupt():
    silence.accept()
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
{masked}
try:
    client.get("x")
except KeyboardInterrupt:
    client.close()
else:
    raise AssertionError("nothing interrupted it")
"""
    )
    run(program, shared_server)
