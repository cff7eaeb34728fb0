"""Where records go, and what a bad setting does."""

import os
from pathlib import Path

import pytest

from otel_audit.capture import settings
from otel_audit.capture.settings import Destination, destination, is_also_theirs, read
from otel_audit.errors import ConfigError
from tests.spool_support import MIB

OWN = "OTEL_AUDIT_ENDPOINT"
SHARED = "OTEL_EXPORTER_OTLP_ENDPOINT"
HTTP = {"OTEL_AUDIT_PROTOCOL": "http/protobuf"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, Destination("grpc", "localhost:4317")),
        (HTTP, Destination("http", "http://localhost:4318/v1/traces")),
        ({OWN: "http://audit:5000"}, Destination("grpc", "audit:5000")),
        ({OWN: "audit:5000"}, Destination("grpc", "audit:5000")),
        ({OWN: "http://audit"}, Destination("grpc", "audit:4317")),
        ({OWN: "https://audit"}, Destination("grpc", "audit:443", tls=True)),
        ({OWN: "http://[::1]:5000"}, Destination("grpc", "[::1]:5000")),
        ({OWN: "http://audit:5000", **HTTP}, Destination("http", "http://audit:5000/v1/traces")),
        ({OWN: "https://audit/base/", **HTTP}, Destination("http", "https://audit:443/base/v1/traces", tls=True)),
        ({OWN: "http://audit/v1/traces", **HTTP}, Destination("http", "http://audit:4318/v1/traces")),
        ({OWN: "file:/var/audit"}, Destination("log", "/var/audit")),
        ({OWN: "file:///var/audit%20log"}, Destination("log", "/var/audit log")),
        ({SHARED: "http://collector:4317"}, Destination("grpc", "collector:4317")),
        ({OWN: "http://audit:1", SHARED: "http://collector:4317"}, Destination("grpc", "audit:1")),
        (
            {SHARED: "http://collector:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            Destination("http", "http://collector:4318/v1/traces"),
        ),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/custom", **HTTP},
            Destination("http", "http://c:4318/custom"),
        ),
        # the application's own protocol says nothing about another endpoint
        ({OWN: "http://audit:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, Destination("grpc", "audit:1")),
        # OTEL_AUDIT_DIR belongs to the service and the command line
        ({"OTEL_AUDIT_DIR": "/var/audit"}, Destination("grpc", "localhost:4317")),
        ({"OTEL_TRACES_EXPORTER": "otlp, audit", "OTEL_AUDIT_DIR": "/var/audit"}, Destination("log", "/var/audit")),
        ({"OTEL_TRACES_EXPORTER": "audit", OWN: "http://audit:1"}, Destination("grpc", "audit:1")),
    ],
)
def test_destination(env: dict[str, str], expected: Destination) -> None:
    assert read(env).destination == expected


def test_the_audit_exporter_without_settings_writes_a_local_log_here() -> None:
    assert destination({}, local=True) == Destination("log", str(Path.cwd() / "audit-log"))


@pytest.mark.parametrize(
    "env",
    [
        {OWN: "ftp://audit"},
        {OWN: "http://"},
        {OWN: "http://audit:port"},
        {OWN: "http://audit:99999"},
        {OWN: "file:"},
        {OWN: "file://other-host/path"},
        {"OTEL_AUDIT_PROTOCOL": "carrier-pigeon"},
    ],
)
def test_a_destination_that_cannot_be_meant_is_refused_with_a_hint(env: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as e:
        read(env)
    assert e.value.hint


def test_headers_for_the_telemetry_backend_are_never_sent_to_another_endpoint() -> None:
    theirs = {"OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret"}
    assert destination({**theirs, SHARED: "http://vendor"}).headers == (("api-key", "secret"),)
    assert destination({**theirs, OWN: "http://audit"}).headers == ()
    ours = {"OTEL_AUDIT_HEADERS": "Authorization=Bearer%20x, b = 1,broken"}
    assert destination({**theirs, **ours, OWN: "http://audit"}).headers == (("authorization", "Bearer x"), ("b", "1"))


def test_a_secret_header_is_not_printed() -> None:
    found = destination({OWN: "http://audit", "OTEL_AUDIT_HEADERS": "authorization=secret"})
    assert "secret" not in repr(found) + str(found)


@pytest.mark.parametrize(
    ("env", "counts"),
    [
        ({"OTEL_AUDIT_SPOOL_BYTES": "many"}, (256 * MIB, 0.05, 5.0)),
        ({"OTEL_AUDIT_SPOOL_BYTES": "20000"}, (MIB, 0.05, 5.0)),
        ({"OTEL_AUDIT_BLOCK_TIMEOUT": "-1"}, (256 * MIB, 0.0, 5.0)),
        ({"OTEL_AUDIT_EXIT_TIMEOUT": "nan"}, (256 * MIB, 0.05, 5.0)),
    ],
)
def test_another_bad_setting_is_a_complaint_and_the_nearest_or_the_default_counts(
    env: dict[str, str], counts: tuple[float, ...]
) -> None:
    found = read(env)
    assert len(found.problems) == 1
    assert next(iter(env)) in found.problems[0]
    assert (found.spool_bytes, found.block_timeout_s, found.exit_timeout_s) == counts


def test_a_spool_may_be_as_large_as_a_disk() -> None:
    found = read({"OTEL_AUDIT_SPOOL_BYTES": str(50 * 1024 * MIB)})
    assert (found.spool_bytes, found.problems) == (50 * 1024 * MIB, ())


@pytest.mark.parametrize(
    ("env", "same"),
    [
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none"}, False),
        ({}, False),
        ({"OTEL_TRACES_EXPORTER": "console, otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://elsewhere:4317"}, False),
    ],
)
def test_whether_the_users_exporter_sends_to_the_same_place(env: dict[str, str], same: bool) -> None:
    env = {"OTEL_AUDIT_ENDPOINT": "http://localhost:4317", **env}
    assert is_also_theirs(destination(env), env) is same


def test_header_names_are_lower_case_and_blank_is_unset() -> None:
    names = {
        "OTEL_AUDIT_API_KEY_HEADER": "api_key_header",
        "OTEL_AUDIT_CLIENT_HEADER": "client_header",
        "OTEL_AUDIT_CLIENT_CERT_HEADER": "certificate_header",
        "OTEL_AUDIT_FORWARDING_HEADER": "forwarding_header",
    }
    found = read({"OTEL_AUDIT_TRUSTED_PROXIES": "10.0.0.0/8", **{n: f" X-{i} " for i, n in enumerate(names)}})
    assert [getattr(found, field) for field in names.values()] == ["x-0", "x-1", "x-2", "x-3"]
    assert not found.problems
    blank = read(dict.fromkeys(names, " "))
    assert [getattr(blank, field) for field in names.values()] == ["x-api-key", None, None, None]


@pytest.mark.parametrize(
    ("variable", "needed"),
    [
        ("OTEL_AUDIT_JWT_ISSUER", {"OTEL_AUDIT_JWKS": "keys.json"}),
        ("OTEL_AUDIT_JWT_AUDIENCE", {"OTEL_AUDIT_JWKS": "keys.json"}),
        ("OTEL_AUDIT_CLIENT_CERT_HEADER", {"OTEL_AUDIT_TRUSTED_PROXIES": "unix"}),
        ("OTEL_AUDIT_FORWARDING_HEADER", {"OTEL_AUDIT_TRUSTED_PROXIES": "unix"}),
        ("OTEL_AUDIT_FORWARDING_HEADER", {"OTEL_AUDIT_TRUSTED_HOPS": "1"}),
    ],
)
def test_a_setting_that_does_nothing_without_another_is_a_complaint(variable: str, needed: dict[str, str]) -> None:
    (problem,) = read({variable: "x"}).problems
    assert problem.startswith(f"{variable} has no effect; ")
    assert read({variable: "x", **needed}).problems == ()


def test_every_variable_of_capture_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "capture.md").read_text()
    assert [name for name in settings.ENV_VARS if f"`{name}`" not in text] == []


def test_the_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(OWN, "http://audit:7")
    assert read().destination.target == "audit:7"
