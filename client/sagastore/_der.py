"""The validity period of an X.509 certificate (RFC 5280).

The standard library decodes certificates of connections only, and `cryptography` would
be a further dependency of every client.
"""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["validity"]

_VERSION = 0xA0
_UTC_TIME = 0x17


def validity(der: bytes) -> datetime | None:
    """Return when a certificate expires; None if it cannot be read."""
    try:
        # Certificate > TBSCertificate > version?, serial number, algorithm, issuer, validity
        _, certificate, _ = _element(der)
        _, body, _ = _element(certificate)
        tag, _, rest = _element(body)
        for _ in range(3 if tag == _VERSION else 2):
            _, _, rest = _element(rest)
        _, period, _ = _element(rest)
        _, _, rest = _element(period)  # Not before.
        tag, ends, _ = _element(rest)
        return _time(tag, ends.decode("ascii"))
    except (ValueError, IndexError):
        return None


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Return the tag and the content of the first element, and the data after it."""
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start])
    if start + length > len(data):
        raise ValueError("the element is incomplete")
    return data[0], data[start : start + length], data[start + length :]


def _time(tag: int, text: str) -> datetime:
    """Return a time; UTCTime has two digits of the year, from 1950 (RFC 5280, 4.1.2.5.1)."""
    if tag == _UTC_TIME:
        text = f"{'19' if text >= '5' else '20'}{text}"
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
