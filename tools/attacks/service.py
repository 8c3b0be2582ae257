"""The attacked server: `sagastore-server serve`, configured as in production.

TLS, an access file with several tokens, and an ops port, all on the loopback interface
(docs/how-to/security.md). The server runs in a separate process.
"""

from __future__ import annotations

import resource
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from sagastore.v1 import storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.security.pki import Pki, entry, environment, write_access
from tests.support.server_process import ServerProcess, serve_command
from tools.attacks.loopback import Address
from tools.attacks.plan import MB, Target

BESIDE = ("beside", "newcomer")
"""Names of the callers beside the attack."""
_ROLES = {"beside": "writer", "newcomer": "reader", "revoked": "reader", "attacker": "reader",
          "attacking-writer": "writer"}  # fmt: skip
_CALL = 10.0
"""Seconds for one call."""
_PREPARED = """
import os, resource, sys
limit, folder, *command = sys.argv[1:]
os.umask(0o022)
if limit:
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(limit), int(limit)))
if folder:
    os.chdir(folder)
os.execv(command[0], command)
"""
"""Starts the server with a limit of open files, in a working folder, with the usual umask."""


class PreparedServer(ServerProcess):
    """Server process with a limit of open files and a working folder.

    With a working folder, the server does not import modules from there: ``-P`` stands for the
    script ``sagastore-server``, which has the same effect.
    """

    file_limit: int | None = None
    working_folder: Path | None = None

    def command(self, *options: str) -> list[str]:
        """Return the command line."""
        served = serve_command(*options)
        if self.working_folder is not None:
            served.insert(1, "-P")
        limit = "" if self.file_limit is None else str(self.file_limit)
        return [sys.executable, "-c", _PREPARED, limit, str(self.working_folder or ""), *served]


class Service:
    """A server with its certificates and tokens. Use as a context."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        *,
        file_limit: int | None = None,
        working_folder: Path | None = None,
    ) -> None:
        """Serve a store in ``folder``; ``settings`` override those of production, by variable."""
        self.folder = folder
        self._pki = Pki(folder / "pki")
        self._access = folder / "access.toml"
        self._tokens = {name: f"saga_{secrets.token_urlsafe(32)}" for name in _ROLES}
        self._write_access(_ROLES)
        env = environment(self._pki.server(), None, self._access)
        env |= {"SAGASTORE_OPS_LISTEN": "127.0.0.1:0"} | dict(settings or {})
        self._process = PreparedServer(folder / "saga.db", env=env)
        self._process.file_limit = file_limit
        self._process.working_folder = working_folder

    def __enter__(self) -> Service:
        self._process.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.close()

    @property
    def pid(self) -> int:
        """PID of the server."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the server runs."""
        return self._process.alive

    @property
    def address(self) -> str:
        """Address of the service."""
        return self._process.address

    @property
    def ops(self) -> Address:
        """Address of the ops port."""
        return Address.parse(self._process.wait_for_event("serving")["ops"])

    @property
    def target(self) -> Target:
        """What an attacker knows."""
        tokens = {
            "reader": self._tokens["attacker"],
            "writer": self._tokens["attacking-writer"],
        }
        return Target(Address.parse(self.address), self.ops, self._pki.ca, tokens)

    def memory(self) -> float:
        """Return the resident memory of the server in megabytes; 0 if it has ended."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0.0
        return pages * resource.getpagesize() / MB

    def log(self) -> list[str]:
        """Return the lines that the server has logged."""
        return list(self._process.stderr)

    def secrets_in_log(self) -> list[str]:
        """Return the names of the tokens that the log contains."""
        text = "\n".join(self.log())
        return [name for name, token in self._tokens.items() if token in text]

    def token(self, name: str) -> str:
        """Return the token of a caller."""
        return self._tokens[name]

    def credentials(self, name: str) -> grpc.ChannelCredentials:
        """Return the credentials of a caller: the authority and its token."""
        return grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(self._pki.ca.read_bytes()),
            grpc.access_token_call_credentials(self._tokens[name]),
        )

    def get_with(self, name: str) -> str:
        """Get an unknown message with the token ``name``; return the status code."""
        with self.channel(name) as channel:
            try:
                self.stub(channel).Get(
                    storage_pb2.GetRequest(id="unknown"), timeout=_CALL, wait_for_ready=True
                )
            except grpc.RpcError as exc:
                code: grpc.StatusCode = exc.code()
                return code.name
        return "OK"

    def stub(self, channel: grpc.Channel) -> Any:
        """Return a client of StorageService."""
        return StorageServiceStub(channel)

    def channel(self, name: str) -> grpc.Channel:
        """Return a channel of a caller; the caller closes it."""
        return grpc.secure_channel(self.address, self.credentials(name))

    def revoke(self, name: str) -> None:
        """Remove a token from the access file."""
        self._write_access({one: role for one, role in _ROLES.items() if one != name})

    def _write_access(self, roles: Mapping[str, str]) -> None:
        tokens = self._tokens
        write_access(
            self._access,
            *(entry("token", name, role, token=tokens[name]) for name, role in roles.items()),
        )
