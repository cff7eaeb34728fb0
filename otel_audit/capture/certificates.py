"""Whom a client certificate names: from the subject of a peer, or from a header in which a proxy passes it on.

Envoy writes `X-Forwarded-Client-Cert`: one element for each proxy, the last one by the proxy that speaks to us. Others
write the subject's distinguished name alone into a header that the operator chooses.
"""

import re
from typing import Final, NamedTuple

from otel_audit.capture._quoted import from_right, pairs

__all__ = ["XFCC", "Certificate", "from_header", "from_subject", "from_xfcc"]

XFCC: Final = "x-forwarded-client-cert"

_PART: Final = re.compile(r'((?:\\.|"(?:\\.|[^"\\])*"|[^\\,+;"])*)(?:[,+;]|\Z)', re.DOTALL)
"""One attribute of a distinguished name; a separator that is escaped or in quotes does not end it."""
_ESCAPED: Final = re.compile(r"\\([0-9A-Fa-f]{2}|.)", re.DOTALL)


class Certificate(NamedTuple):
    """What is known of a client certificate.

    Args:
        names: what may name the client, the most telling first: URIs (SPIFFE), the subject's common name, DNS names, the
            whole subject.
        digest: SHA-256 of the certificate in hex, or None.
    """

    names: tuple[str, ...]
    digest: str | None = None


def from_subject(subject: str) -> Certificate:
    """The certificate with this subject: a distinguished name (RFC 4514, or with slashes as OpenSSL once wrote it).

    Text without attributes is a name as it is.
    """
    subject = subject.strip()
    common = _common_name(subject)
    return Certificate(tuple(dict.fromkeys(name for name in (common, subject) if name)))


def from_header(name: str, value: str) -> Certificate | None:
    """The certificate in the header `name` (lower case); None if the value makes no sense."""
    if name == XFCC:
        return from_xfcc(value)
    return from_subject(value) if value.strip() else None


def from_xfcc(value: str) -> Certificate | None:
    """The certificate of the last element of `X-Forwarded-Client-Cert`; None if that makes no sense."""
    found = pairs(next(from_right(value)))
    if found is None:
        return None
    said: dict[str, list[str]] = {}
    for key, text in found:
        if text:
            said.setdefault(key, []).append(text)
    if any(len(said.get(key, ())) > 1 for key in ("subject", "hash")):
        return None
    subject = from_subject(said["subject"][0]).names if "subject" in said else ()
    ordered = (*said.get("uri", ()), *subject[:-1], *said.get("dns", ()), *subject[-1:])
    digest = said.get("hash", [None])[0]
    return Certificate(tuple(dict.fromkeys(ordered)), digest) if ordered or digest else None


def _common_name(subject: str) -> str | None:
    """The common name of a distinguished name, the most specific if there are several; None if it has none.

    In the form with slashes nothing is escaped, so that one attribute may pretend to be two: of several names none counts.
    """
    if subject.startswith("/"):
        found = [part[3:] for part in subject.split("/") if part[:3].upper() == "CN="]
        return (found[0].strip() or None) if len(found) == 1 else None
    at = 0
    while at < len(subject) and (part := _PART.match(subject, at)) is not None:
        key, equals, value = part[1].partition("=")
        if not equals:  # no distinguished name, but a name with a comma in it
            return None
        if key.strip().upper() == "CN":
            return _unescaped(value.strip()) or None
        at = part.end()
    return None


def _unescaped(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if "\\" not in text:
        return text
    raw = _ESCAPED.sub(lambda m: chr(int(m[1], 16)) if len(m[1]) == 2 else m[1], text)
    try:
        return raw.encode("latin-1").decode()  # escaped bytes are UTF-8
    except UnicodeError:
        return raw
