"""Realistic OTLP trace requests, made fast: what services under OpenTelemetry send, without running them.

A body is an encoded `ExportTraceServiceRequest` of SERVER spans with 14 attributes each. Some forty routes, a thousand
clients and six services, popular ones far more often than rare ones; ids are random, times advance, durations are
log-normal, object ids in paths vary. Bytes per record are measured on this data, so its cardinalities matter.

A few templates are encoded once; each body is a copy of one with ids, times, path ids and counters written over it, so
bodies never repeat an id and cost about a microsecond a span to make.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["CLIENTS", "ROUTES", "iter_bodies", "make_bodies"]

CLIENTS: Final = 1000
START_NS: Final = 1_795_420_800_000_000_000  # 2026-11-23T08:00:00Z
_STEP_NS: Final = 100_000  # between two calls of one body: 10,000 calls/s
_SEQ_WIDTH: Final = 4  # bytes of a counter's varint
_ID_DIGITS: Final = 6
_TEMPLATES: Final = 12

_OBJECTS: Final = ("contacts", "companies", "deals", "activities", "invoices", "tickets", "products")
ROUTES: Final = (
    *(("GET", f"/api/v1/{o}/{{id}}") for o in _OBJECTS),
    *(("GET", f"/api/v1/{o}") for o in _OBJECTS),
    *(("POST", f"/api/v1/{o}") for o in _OBJECTS),
    *(("PATCH", f"/api/v1/{o}/{{id}}") for o in _OBJECTS),
    *(("DELETE", f"/api/v1/{o}/{{id}}") for o in _OBJECTS),
    ("GET", "/api/v1/contacts/search"),
    ("GET", "/api/v1/deals/{id}/activities"),
    ("POST", "/api/v1/contacts/{id}/merge"),
    ("GET", "/api/v1/contacts/export"),
    ("POST", "/login"),
)
"""Forty routes: method and path template."""

_SERVICES: Final = (
    ("crm-api", "fastapi"),
    ("billing-api", "fastapi"),
    ("search-api", "fastapi"),
    ("support-api", "flask"),
    ("catalog-api", "flask"),
    ("legacy-api", "flask-old"),
)
_AGENTS: Final = (
    "python-httpx/0.28.1",
    "python-requests/2.32.3",
    "okhttp/4.12.0",
    "Go-http-client/2.0",
    "axios/1.7.9",
    "curl/8.11.0",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
)
_NAMES: Final = ("Billing sync", "Mobile app", "Data warehouse", "Support desk", "Partner portal", "Nightly export")


# --- the wire -----------------------------------------------------------------------------------------------------------
def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _attribute(key: str, value: str | int) -> bytes:
    any_value = _field(1, value.encode()) if isinstance(value, str) else b"\x18" + _varint(value)
    return _field(1, key.encode()) + _field(2, any_value)


# --- templates ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Template:
    """An encoded request and where in it, per span, the bytes lie that differ from body to body; -1 where absent."""

    body: bytes
    trace_id: npt.NDArray[np.int64]
    span_id: npt.NDArray[np.int64]
    parent: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    path_id: npt.NDArray[np.int64]
    seq: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    """Place of each span among those of its source."""
    of: npt.NDArray[np.int64]
    """How many spans its source has here."""


_MARK_ID: Final = b"\x01" * _ID_DIGITS  # stands for an object id in a path until it is overwritten
_SEQ_MARK: Final = 1 << 7 * (_SEQ_WIDTH - 1)  # smallest number whose varint has that many bytes


def _pick(rng: np.random.Generator, n: int, size: int, skew: float) -> npt.NDArray[np.int64]:
    """`size` numbers below `n`, small ones more often (Zipf)."""
    weights = 1.0 / np.arange(1, n + 1) ** skew
    return rng.choice(n, size=size, p=weights / weights.sum())


def _client(number: int) -> dict[str, str]:
    name = f"{_NAMES[number % len(_NAMES)]} {number:03d}"
    return {
        "id": f"cl_{number * 2_654_435_761 % 2**32:08x}",
        "name": name,
        "auth": "jwt" if number % 3 else "api_key",
        "ip": f"10.{number % 7}.{number // 250}.{number % 250 + 1}",
        "agent": _AGENTS[number % len(_AGENTS)],
    }


def _status(rng: np.random.Generator, method: str) -> int:
    draw = rng.random()
    if draw < 0.93:
        return 201 if method == "POST" else 204 if method == "DELETE" else 200
    return int(rng.choice([401, 403, 404, 422, 429, 500, 503], p=[0.1, 0.1, 0.45, 0.2, 0.05, 0.07, 0.03]))


def _attributes(style: str, client: dict[str, str], call: tuple[str, str], status: int, port: int) -> list[bytes]:
    """The attribute set that this kind of service sends, as measured, with what capture adds: 14 in all."""
    method, route = call
    path = route.replace("{id}", _MARK_ID.decode())
    seq = ("audit.source.seq", _SEQ_MARK)
    if style == "flask-old":
        pairs: list[tuple[str, str | int]] = [
            ("http.method", method),
            ("http.server_name", "127.0.0.1"),
            ("http.scheme", "http"),
            ("net.host.name", "legacy.internal"),
            ("http.host", "legacy.internal:8080"),
            ("net.host.port", 8080),
            ("http.target", path),
            ("net.peer.ip", client["ip"]),
            ("net.peer.port", port),
            ("http.user_agent", client["agent"]),
            ("http.flavor", "1.1"),
            ("http.route", route.replace("{id}", "<int:id>")),
            ("http.status_code", status),
            ("audit.client.id", client["id"]),
        ]
    else:
        pairs = [
            ("url.scheme", "http"),
            ("server.address", "10.0.0.17"),
            ("server.port", 8080),
            ("network.protocol.version", "1.1"),
            ("url.path", path),
            ("http.request.method", method),
            ("user_agent.original", client["agent"]),
            ("client.address", client["ip"]),
            ("client.port", port) if style == "flask" else ("audit.client.auth", client["auth"]),
            ("audit.client.id", client["id"]),
            ("audit.client.name", client["name"]),
            seq,
            ("http.route", route.replace("{id}", "<int:id>") if style == "flask" else route),
            ("http.response.status_code", status),
        ]
    return [_attribute(key, value) for key, value in pairs]


def _span(style: str, client: dict[str, str], call: tuple[str, str], status: int, port: int) -> bytes:
    head = b"\x0a\x10" + bytes(16) + b"\x12\x08" + bytes(8) + b"\x22\x08" + bytes(8)
    times = b"\x39" + bytes(8) + b"\x41" + bytes(8)
    attributes = _attributes(style, client, call, status, port)
    error = b"\x7a\x02\x18\x02" if status >= 500 else b"\x7a\x00"
    name = _field(5, " ".join(call).encode())
    return (
        head
        + name
        + b"\x30\x02"
        + times
        + b"".join(_field(9, a) for a in attributes)
        + error
        + b"\x85\x01\x00\x01\x00\x00"
    )


def _resource(service: str, instance: int, source: str) -> bytes:
    pairs = (
        ("telemetry.sdk.language", "python"),
        ("telemetry.sdk.name", "opentelemetry"),
        ("telemetry.sdk.version", "1.45.1"),
        ("service.name", service),
        ("service.version", "2026.11.2"),
        ("service.instance.id", f"{service}-7d9f8b6c5-{instance:05x}"),
        ("deployment.environment.name", "production"),
        ("audit.source.id", f"{service}-{source}"),
    )
    return b"".join(_field(1, _attribute(key, value)) for key, value in pairs)


def _template(rng: np.random.Generator, spans: int, number: int, seed: int) -> _Template:
    """One request: mostly of one service, every third of two, as a Collector's batches are; each of a source of its own."""
    parts: list[bytes] = []
    sizes: list[int] = []
    services = [_SERVICES[number % len(_SERVICES)]]
    if number % 3 == 2 and spans > 1:
        services.append(_SERVICES[(number + 1) % len(_SERVICES)])
    clients, routes = _pick(rng, CLIENTS, spans, 0.8), _pick(rng, len(ROUTES), spans, 0.9)
    scope = _field(1, _field(1, b"opentelemetry.instrumentation.asgi") + _field(2, b"0.66b1"))
    for k, (service, style) in enumerate(services):
        encoded = []
        for i in range(spans * k // len(services), spans * (k + 1) // len(services)):
            call = ROUTES[routes[i]]
            port = int(rng.integers(32768, 61000))
            encoded.append(_field(2, _span(style, _client(int(clients[i])), call, _status(rng, call[0]), port)))
        sizes.append(len(encoded))
        resource = _field(1, _resource(service, int(rng.integers(0, 4)), f"{seed}-{number}"))
        parts.append(_field(1, resource + _field(2, scope + b"".join(encoded))))
    return _index(b"".join(parts), sizes)


def _index(body: bytes, sizes: list[int]) -> _Template:
    """Where the varying bytes of each span lie, found by the marks the encoder left."""
    head = b"\x0a\x10" + bytes(16) + b"\x12\x08"
    seq_key = b"audit.source.seq\x12\x05\x18"
    at: dict[str, list[int]] = {"trace": [], "start": [], "path": [], "seq": []}
    spans = sum(sizes)
    for _ in range(spans):
        trace = body.index(head, at["trace"][-1] + 1 if at["trace"] else 0)
        at["trace"].append(trace + 2)
    for i, trace in enumerate(at["trace"]):
        end = at["trace"][i + 1] if i + 1 < spans else len(body)
        at["start"].append(body.index(b"\x30\x02\x39", trace) + 3)
        path, seq = body.find(_MARK_ID, trace, end), body.find(seq_key, trace, end)
        at["path"].append(path)
        at["seq"].append(seq + len(seq_key) if seq >= 0 else -1)
    trace_id = np.array(at["trace"])
    return _Template(
        body=body,
        trace_id=trace_id,
        span_id=trace_id + 18,
        parent=trace_id + 28,
        start=np.array(at["start"]),
        path_id=np.array(at["path"]),
        seq=np.array(at["seq"]),
        rank=np.concatenate([np.arange(size) for size in sizes]),
        of=np.repeat(sizes, sizes),
    )


# --- bodies -------------------------------------------------------------------------------------------------------------
def _put(buffer: npt.NDArray[np.uint8], at: npt.NDArray[np.int64], rows: npt.NDArray[np.uint8]) -> None:
    """Write row k of `rows` at offset `at[k]`, leaving out offsets below zero."""
    there = at >= 0
    buffer[at[there, None] + np.arange(rows.shape[1])] = rows[there]


def _seq_bytes(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Varints of one width, whatever the number: leading groups may be zero."""
    groups = numbers[:, None] % 2 ** (7 * _SEQ_WIDTH) >> (7 * np.arange(_SEQ_WIDTH)) & 0x7F
    groups[:, :-1] |= 0x80
    return np.asarray(groups, np.uint8)


def _fill(template: _Template, rng: np.random.Generator, start_ns: int, earlier: int) -> bytes:
    """A body of a template that was used `earlier` times."""
    n = len(template.trace_id)
    buffer = np.frombuffer(template.body, np.uint8).copy()
    _put(buffer, template.trace_id, rng.integers(1, 256, (n, 16), dtype=np.uint8))
    _put(buffer, template.span_id, rng.integers(1, 256, (n, 8), dtype=np.uint8))
    _put(buffer, template.parent, rng.integers(1, 256, (n, 8), dtype=np.uint8))
    starts = start_ns + np.sort(rng.integers(0, n * _STEP_NS, n))
    ends = starts + np.exp(rng.normal(16.0, 0.9, n)).astype(np.int64)  # median 9 ms
    times: Any = np.stack([starts, ends], axis=1).astype("<i8").view(np.uint8).reshape(n, 16)
    _put(buffer, template.start, times[:, :8])
    _put(buffer, template.start + 9, times[:, 8:])
    ids = 10 ** (_ID_DIGITS - 1) + (rng.pareto(1.2, n) * 2000).astype(np.int64) % (9 * 10 ** (_ID_DIGITS - 1))
    digits = (ids[:, None] // 10 ** np.arange(_ID_DIGITS - 1, -1, -1) % 10 + ord("0")).astype(np.uint8)
    _put(buffer, template.path_id, digits)
    _put(buffer, template.seq, _seq_bytes(1 + earlier * template.of + template.rank))
    return buffer.tobytes()


def iter_bodies(count: int, spans_per_body: int, seed: int = 1) -> Iterator[bytes]:
    """`count` encoded requests of `spans_per_body` spans each, one at a time; the same for the same arguments.

    Ids differ between all bodies of one call, and between calls with different seeds. Each source numbers its calls from 1.
    """
    rng = np.random.default_rng(seed)
    templates = [_template(rng, spans_per_body, k, seed) for k in range(min(_TEMPLATES, max(count, 1)))]
    for k in range(count):
        start_ns = START_NS + k * spans_per_body * _STEP_NS
        yield _fill(templates[k % len(templates)], rng, start_ns, k // len(templates))


def make_bodies(count: int, spans_per_body: int, seed: int = 1) -> list[bytes]:
    """`count` encoded requests of `spans_per_body` spans each, as `iter_bodies` gives them."""
    return list(iter_bodies(count, spans_per_body, seed))
