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
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any

from sagastore_server.interfaces.access import ANYONE, Caller
from sagastore_server.interfaces.audit import Audit, Details
from sagastore_server.telemetry.audit_writer import AuditWriter, Destination
from sagastore_server.telemetry.line_limiter import LineLimiter, Rate, shown_peer, source_of
from sagastore_server.telemetry.log_text import Secrets, clean

if TYPE_CHECKING:
    from sagastore_server.interfaces.call_context import CallContext

REFUSED_RATE = Rate(280, 2048)
"""Rate of a source for lines about refused calls: five at once, then one in two seconds."""
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
_TOO_MANY = "RESOURCE_EXHAUSTED"
_MAX_CERTIFICATES = 256
_MAX_CALLERS = 1000


_Entry = tuple[str, float, str, str, Caller | None, Mapping[str, Any], str, str, Details]
"""Event, seconds since 1970, code, method, caller, properties of its certificate, peer, id of the
call, details. A plain tuple, because the event loop creates one for every change."""


class AuditTrail(Audit):
    """Writes the audit trail of one server."""

    def __init__(
        self,
        destination: Destination,
        *,
        records_changes: bool = True,
        has_certificates: bool = False,
        secrets: Secrets = (),
        is_terminal: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Write to ``destination`` in a thread until `close`.

        Args:
            destination: Receives the lines.
            records_changes: Whether changes are recorded; refused callers always are.
            has_certificates: Whether clients may have certificates.
            secrets: Masked where they occur in a line.
            is_terminal: Whether people read the lines: they are text instead of JSON.
            clock: Seconds since 1970.

        """
        self.records_changes = records_changes
        self._has_certificates = has_certificates
        self._secrets = secrets
        self._is_terminal = is_terminal
        self._clock = clock
        self._limiter = LineLimiter(REFUSED_RATE, TOTAL_REFUSED_RATE)
        self._certificates: dict[bytes, str] = {}
        self._callers: dict[Caller, str] = {}
        self._second = -1, ""
        self._writer = AuditWriter[_Entry](destination, self._render, self._lost, self._summarize)

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
        if call.describe is not None:
            self._put("change", call, code, call.describe(call.request, call.response))

    def ended(self, call: CallContext, code: str) -> None:
        """See the contract."""
        if call.describe is not None:
            self._put("change", call, code, call.describe(call.request, call.response))
            # Tasks that the call has started may keep its context for days.
            call.describe = call.request = call.response = None
        elif _is_refused(call, code) and self._is_listed(call):
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
        if code != "OK":
            # Not validated: a text may be as long as a request.
            details = tuple((name, _bounded(value)) for name, value in details)
        if call.client:
            details = (("client", shown_peer(call.client)), *details)
        identity = call.identity
        certificate: Mapping[str, Any] = {}
        if self._has_certificates and (identity is None or not identity.credential):
            certificate = call.read_certificate() if call.read_certificate is not None else {}
        self._writer.put(
            (
                *(event, self._clock(), code, call.method, identity),
                *(certificate, call.peer, call.known_id, details),
            )
        )

    # ------------------------------------------------- in the thread of the writer

    def _render(self, entry: _Entry) -> str:
        event, at, code, method, identity, certificate, peer, call_id, details = entry
        caller = self._caller(identity, certificate)
        address = f'"peer": {encode_basestring(shown_peer(peer))}'
        head = f'"code": "{code}", "method": "{method}", {caller}{address}'
        if call_id:
            details = (("call", call_id), *details)
        return self._line(event, at, details, head)

    def _caller(self, identity: Caller | None, certificate: Mapping[str, Any]) -> str:
        """Return the fields for name, role and credential, each with a comma."""
        if identity is not None and not certificate:
            fields = self._callers.get(identity)
            if fields is None:
                if len(self._callers) >= _MAX_CALLERS:
                    self._callers.clear()
                fields = self._callers[identity] = f"{self._fields(_named(identity))}, "
            return fields
        credential, names = self._credential(certificate)
        if identity is None:
            return f'"credential": "{credential}", ' if credential else ""
        name = names[0] if names and identity is ANYONE else identity.name
        return f"{self._fields(_named(Caller(name, identity.role, credential)))}, "

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

    def _line(self, event: str, at: float, details: Details, head: str = "") -> str:
        """Return a line. Built by hand, because `json.dumps` takes several times as long."""
        start = (
            f'{{"timestamp": "{self._time(at)}", "level": "info", "logger": "audit", '
            f'"event": "{event}"{", " if head else ""}{head}'
        )
        fields = self._fields(details)
        line = f"{start}, {fields}}}\n" if fields else f"{start}}}\n"
        if len(line) * 4 > MAX_LINE and len(line.encode("utf-8", "replace")) > MAX_LINE:
            line = f"{start}, {self._fields(details, _SHORT_TEXT)}}}\n"
        return _for_people(line) if self._is_terminal else line

    def _fields(self, details: Details | list[tuple[str, object]], limit: int = _MAX_TEXT) -> str:
        """Return the fields that are not empty, as JSON."""
        return ", ".join(
            [
                f'"{name}": {self._encoded(value, limit)}'
                for name, value in details
                if value not in ("", [])
            ]
        )

    def _encoded(self, value: object, limit: int) -> str:
        if isinstance(value, str):
            # Longer than the limit, so that no secret is cut to a part that is not recognized.
            shown = clean(value[: 2 * limit], self._secrets, 2 * limit)
            return encode_basestring(shown if len(shown) <= limit else f"{shown[:limit]}…")
        if isinstance(value, list):
            return f"[{', '.join([self._encoded(one, limit) for one in value])}]"
        return json.dumps(value) if isinstance(value, bool) else str(value)

    def _time(self, at: float) -> str:
        second, text = self._second
        if second != int(at):
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
            self._second = int(at), text
        return f"{text}.{int(at % 1 * 1e6):06d}Z"

    def _lost(self, lines: int) -> str:
        return self._line("audit lines lost", self._clock(), (("lines", lines),))

    def _summarize(self) -> list[str]:
        at = self._clock()
        return [
            self._line("refusals suppressed", at, (("source", source), ("lines", count)))
            for source, count in self._limiter.take_suppressed()
        ]


def _is_refused(call: CallContext, code: str) -> bool:
    """Return whether the caller was refused: unknown, not permitted, or unknown too often."""
    return code in _REFUSALS or (code == _TOO_MANY and call.identity is None)


def _bounded(value: object) -> object:
    if isinstance(value, str):
        return value[: 2 * _MAX_TEXT]
    if isinstance(value, list):
        return [_bounded(one) for one in value]
    return value


def _fingerprint(pem: bytes) -> str:
    der = ssl.PEM_cert_to_DER_cert(pem.decode("ascii", "replace"))
    return f"cert:{hashlib.sha256(der).hexdigest()[:12]}"


def _named(identity: Caller) -> list[tuple[str, object]]:
    return [
        ("caller", identity.name),
        ("role", identity.role.name.lower()),
        ("credential", identity.credential),
    ]


def _for_people(line: str) -> str:
    fields = json.loads(line)
    return " ".join(f"{name}={json.dumps(value)}" for name, value in fields.items()) + "\n"
