"""Audit trail: one line for each change, and for each caller that was refused.

A line names the caller, the address, the RPC, the resources and the outcome; it has no content.
docs/reference/audit.md lists the fields. Lines about changes are never limited; lines about
refused callers are limited for each source, with the number of those that were suppressed.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sagastore_server.interfaces.access import ANYONE, Caller
from sagastore_server.interfaces.audit import Audit, Details
from sagastore_server.telemetry.audit_writer import AuditWriter, Destination, Render
from sagastore_server.telemetry.line_limiter import LineLimiter, Rate, shown_peer, source_of
from sagastore_server.telemetry.log_text import Secrets, clean

if TYPE_CHECKING:
    from sagastore_server.interfaces.call_context import CallContext

REFUSED_RATE = Rate(320, 2048)
"""Rate of a source for lines about refused calls: four at once, then two in three seconds."""
TOTAL_REFUSED_RATE = Rate(32_768, 131_072)
"""Rate of all sources together for these lines."""

MAX_LINE = 4000
"""Bytes of a line; a pipe accepts up to 4096 in one piece."""

_MAX_TEXT = 256
"""Characters of a value: a session id has up to 256, the id of a message up to 128."""
_SHORT_TEXT = 40
"""Characters of the values of a line that would be longer than `MAX_LINE`."""
_REFUSED_SIZE = 480
"""Bytes that a line about a refused call takes, as the limiter counts it: its usual size."""
_MAX_REASON = 160
_REFUSALS = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})
_MAX_CERTIFICATES = 256

_encode = json.JSONEncoder(ensure_ascii=False).encode


class _Who(NamedTuple):
    """The caller of a call, as far as the event loop reads it."""

    identity: Caller | None
    certificate: Mapping[str, Any]
    """Properties of the client certificate; empty if the caller has a token, or none."""
    peer: str


class _Entry(NamedTuple):
    """A line that waits to be written."""

    event: str
    at: float
    """Seconds since 1970."""
    method: str
    call_id: str
    code: str
    who: _Who
    details: Details


class AuditTrail(Audit):
    """Writes the audit trail of one server."""

    def __init__(
        self,
        destination: Destination,
        *,
        records_changes: bool = True,
        secrets: Secrets = (),
        is_terminal: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Write to ``destination`` in a thread until `close`.

        Args:
            destination: Receives the lines.
            records_changes: Whether changes are recorded; refused callers always are.
            secrets: Masked where they occur in a line.
            is_terminal: Whether people read the lines: they are text instead of JSON.
            clock: Seconds since 1970.

        """
        self.records_changes = records_changes
        self._secrets = secrets
        self._is_terminal = is_terminal
        self._clock = clock
        self._limiter = LineLimiter(REFUSED_RATE, TOTAL_REFUSED_RATE)
        self._certificates: dict[bytes, str] = {}
        self._writer = AuditWriter(destination, self._lost, self._summarize)

    @property
    def lost(self) -> int:
        """Lines that could not be written, since the start. Safe in any thread."""
        return self._writer.lost

    @property
    def failure(self) -> str:
        """Why lines cannot be written at present; empty if they can. Safe in any thread."""
        return self._writer.failure

    def changed(self, call: CallContext, code: str) -> None:
        """See the contract."""
        if call.change is not None:
            self._put("change", call, code, call.change.details())

    def ended(self, call: CallContext, code: str) -> None:
        """See the contract."""
        if call.change is not None:
            self.changed(call, code)
            # The context may outlive the call, and the change has its request.
            call.change = None
        elif code in _REFUSALS and self._is_listed(call):
            self._put("access refused", call, code, (("reason", call.refusal[:_MAX_REASON]),))

    def close(self) -> None:
        """Write the remaining lines, for at most five seconds."""
        self._writer.close()

    def _is_listed(self, call: CallContext) -> bool:
        source = source_of(call.peer)
        if not self._limiter.accept(source):
            return False
        self._limiter.charge(source, _REFUSED_SIZE)
        return True

    def _put(self, event: str, call: CallContext, code: str, details: Details) -> None:
        who = _Who(call.identity, _certificate(call), call.peer)
        entry = _Entry(event, self._clock(), call.method, call.known_id, code, who, details)
        self._writer.put(partial(self._line, entry))

    # ------------------------------------------------- in the thread of the writer

    def _line(self, entry: _Entry) -> str:
        line: dict[str, object] = {
            "event": entry.event,
            "code": entry.code,
            "method": entry.method,
            **self._caller(entry.who),
            "peer": shown_peer(entry.who.peer),
            "call": self._shown(entry.call_id),
        }
        for name, value in entry.details:
            line[name] = self._shown(value)
        return self._rendered(line, entry.at)

    def _caller(self, who: _Who) -> dict[str, object]:
        """Return name, role and credential of the caller; unknown ones are empty."""
        credential, names = self._credential(who.certificate)
        if who.identity is None:
            return {"caller": "", "role": "", "credential": credential}
        name = names[0] if names and who.identity is ANYONE else who.identity.name
        return {
            "caller": self._shown(name),
            "role": who.identity.role.name.lower(),
            "credential": who.identity.credential or credential,
        }

    def _credential(self, certificate: Mapping[str, Any]) -> tuple[str, list[str]]:
        """Return the beginning of the fingerprint of a certificate, and its names."""
        found = certificate.get("x509_pem_cert")
        if not found:
            return "", []
        pem = bytes(found[0])
        fingerprint = self._certificates.get(pem)
        if fingerprint is None:
            if len(self._certificates) >= _MAX_CERTIFICATES:
                self._certificates.clear()
            fingerprint = self._certificates[pem] = _fingerprint(pem)
        names = [
            name.decode("utf-8", "replace")
            for key in ("x509_subject_alternative_name", "x509_common_name")
            for name in certificate.get(key, ())
        ]
        return fingerprint, names

    def _shown(self, value: object) -> object:
        if isinstance(value, str):
            # Most ids are short, and nothing in them looks like a secret.
            return clean(value, self._secrets, _MAX_TEXT) if value else ""
        if isinstance(value, list):
            return [self._shown(one) for one in value]
        return value

    def _rendered(self, fields: dict[str, object], at: float) -> str:
        kept = {name: value for name, value in fields.items() if value not in ("", [], None)}
        line = {"timestamp": _time(at), "level": "info", "logger": "audit", **kept}
        if self._is_terminal:
            return " ".join(f"{name}={_encode(value)}" for name, value in line.items())
        text = _encode(line)
        if len(text) * 4 > MAX_LINE and len(text.encode("utf-8", "replace")) > MAX_LINE:
            text = _encode({name: _shortened(value) for name, value in line.items()})
        return text

    def _lost(self, lines: int) -> Render:
        return partial(self._rendered, {"event": "audit lines lost", "lines": lines}, self._clock())

    def _summarize(self) -> None:
        for source, count in self._limiter.take_suppressed():
            fields = {"event": "refusals suppressed", "source": source, "lines": count}
            self._writer.put_in_thread(partial(self._rendered, fields, self._clock()))


def _certificate(call: CallContext) -> Mapping[str, Any]:
    if call.read_certificate is None or (call.identity is not None and call.identity.credential):
        return {}
    return call.read_certificate()


def _fingerprint(pem: bytes) -> str:
    der = ssl.PEM_cert_to_DER_cert(pem.decode("ascii", "replace"))
    return f"cert:{hashlib.sha256(der).hexdigest()[:12]}"


def _shortened(value: object) -> object:
    if isinstance(value, str):
        return value if len(value) <= _SHORT_TEXT else f"{value[:_SHORT_TEXT]}…"
    if isinstance(value, list):
        return [_shortened(one) for one in value]
    return value


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
