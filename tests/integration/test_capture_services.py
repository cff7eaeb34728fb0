"""Real servers under plain `opentelemetry-instrument`: every call arrives, named, whatever stands in its way."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from http.client import HTTPException
from pathlib import Path

import grpc
import pytest

from tests.capture_support import (
    APPS,
    BIN,
    Span,
    basic,
    environment,
    free_port,
    grpc_sink,
    http_sink,
    jwt,
    service,
    wait_until,
)

UNSAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
CLIENTS = [{"id": "web", "name": "Web front end", "key": "web-key"}, {"id": "ops", "name": "Operations"}]
HTTP_SERVERS = ["uvicorn", "flask"]


def numbers(spans: list[Span]) -> list[int]:
    return sorted(s.attributes["audit.source.seq"] for s in spans)


def status(span: Span) -> int:
    code: int = span.attributes["http.status_code"]
    return code


@pytest.mark.parametrize("kind", HTTP_SERVERS)
def test_every_call_arrives_once_and_numbered(kind: str, tmp_path: Path) -> None:
    with grpc_sink() as sink, service(kind, tmp_path, environment(OTEL_AUDIT_ENDPOINT=sink.address)) as s:
        statuses = [s.get(f"/things/{n}") for n in range(50)]
        statuses += [s.get("/things/404"), s.get("/broken"), s.get("/nowhere"), s.get("/things/x")]
        spans = sink.wait(len(statuses))
        s.stop()
        assert len(sink.spans) == len(statuses)
        assert sorted(map(status, spans)) == sorted(statuses)
        assert statuses.count(500) == 1
        assert numbers(spans) == list(range(2, len(statuses) + 2)), "1 is the start of the source"
        assert [x.attributes["audit.action"] for x in sink.about] == ["otel_audit.start", "otel_audit.stop"]
        assert numbers(sink.about) == [1, len(statuses) + 2]
        assert len({x.attributes["audit.source.id"] for x in spans}) == 1
        assert {x.resource["service.name"] for x in spans} == {"things"}


@pytest.mark.parametrize("kind", HTTP_SERVERS)
@pytest.mark.parametrize("sampler", ["always_off", "parentbased_always_off", "traceidratio"])
def test_no_sampler_hides_a_call(kind: str, sampler: str, tmp_path: Path) -> None:
    with (
        grpc_sink() as sink,
        grpc_sink() as theirs,
        service(
            kind,
            tmp_path,
            environment(
                OTEL_AUDIT_ENDPOINT=sink.address,
                OTEL_TRACES_SAMPLER=sampler,
                OTEL_TRACES_SAMPLER_ARG="0.0",
                OTEL_TRACES_EXPORTER="otlp",
                OTEL_EXPORTER_OTLP_ENDPOINT=theirs.address,
                OTEL_BSP_SCHEDULE_DELAY="10",
            ),
        ) as s,
    ):
        for n in range(10):
            s.get(f"/things/{n}")
        spans = sink.wait(10)
        s.stop()
        assert [x.attributes["http.route"] for x in spans]
        assert theirs.attempts == 0, "the user's exporter must not see what the user's sampler dropped"


@pytest.mark.parametrize("kind", HTTP_SERVERS)
def test_a_caller_cannot_switch_its_audit_off(kind: str, tmp_path: Path) -> None:
    with (
        grpc_sink() as sink,
        grpc_sink() as theirs,
        service(
            kind,
            tmp_path,
            environment(
                OTEL_AUDIT_ENDPOINT=sink.address,
                OTEL_TRACES_EXPORTER="otlp",
                OTEL_EXPORTER_OTLP_ENDPOINT=theirs.address,
                OTEL_BSP_SCHEDULE_DELAY="10",
            ),
        ) as s,
    ):
        s.get("/things/1", UNSAMPLED)
        s.get("/things/2")
        spans = sink.wait(2)
        sampled = theirs.wait(1)
        assert {x.trace_id for x in spans} > {"0af7651916cd43dd8448eb211c80319c"}
        assert "0af7651916cd43dd8448eb211c80319c" not in {x.trace_id for x in sampled}
        server = [x for x in sampled if x.kind == 2]
        assert len(server) == 1
        assert "audit.source.seq" not in server[0].attributes


@pytest.mark.parametrize("kind", HTTP_SERVERS)
def test_the_caller_is_named(kind: str, tmp_path: Path) -> None:
    clients = tmp_path / "clients.json"
    clients.write_text(json.dumps(CLIENTS))
    expected = {
        "": (None, None, "none", None),
        "key": ("web", "Web front end", "api_key", None),
        "jwt": ("ops", "Operations", "jwt (unverified)", "alice"),
        "basic": ("partner", None, "basic (unverified)", None),
    }
    headers = {
        "": {},
        "key": {"X-API-Key": "web-key"},
        "jwt": {"Authorization": f"Bearer {jwt(azp='ops', sub='alice')}"},
        "basic": {"Authorization": basic("partner", "pw")},
    }
    with (
        grpc_sink() as sink,
        service(kind, tmp_path, environment(OTEL_AUDIT_ENDPOINT=sink.address, OTEL_AUDIT_CLIENTS=str(clients))) as s,
    ):
        for n, name in enumerate(expected):
            s.get(f"/things/{n}", headers[name])
        found = {}
        for span in sink.wait(len(expected)):
            n = int(span.attributes["http.target"].rpartition("/")[2])
            a = span.attributes.get
            found[list(expected)[n]] = (
                a("audit.client.id"),
                a("audit.client.name"),
                a("audit.client.auth"),
                a("user.id"),
            )
        assert found == expected
        assert not any(b"web-key" in body or b"c2lnbmF0dXJl" in body for body in sink.bodies)


@pytest.mark.parametrize("kind", HTTP_SERVERS)
@pytest.mark.parametrize("trusted", ["", "127.0.0.1/32"])
def test_a_forged_address_counts_only_from_a_trusted_proxy(kind: str, trusted: str, tmp_path: Path) -> None:
    """uvicorn itself believes the header of a local peer; its word is not taken for the socket's."""
    with (
        grpc_sink() as sink,
        service(kind, tmp_path, environment(OTEL_AUDIT_ENDPOINT=sink.address, OTEL_AUDIT_TRUSTED_PROXIES=trusted)) as s,
    ):
        s.get("/things/1", {"X-Forwarded-For": "10.0.0.1, 203.0.113.9"})
        found = sink.wait(1)[0].attributes
        assert found["audit.peer.ip"] == "127.0.0.1"
        said = (found["audit.client.ip"], found["audit.client.ip.source"])
        assert said == (("203.0.113.9", "forwarded") if trusted else ("127.0.0.1", "untrusted"))


@pytest.mark.parametrize("kind", ["uvicorn", "uvicorn-workers", "flask"])
def test_sigterm_loses_no_call_that_ended(kind: str, tmp_path: Path) -> None:
    with grpc_sink() as sink, service(kind, tmp_path, environment(OTEL_AUDIT_ENDPOINT=sink.address)) as s:
        for n in range(20):
            s.get(f"/things/{n}")
        code = s.stop(signal.SIGTERM)
        assert len(sink.spans) == 20
        assert code == (0 if kind == "uvicorn-workers" else -signal.SIGTERM), "ends as it would without us"


def test_sigterm_lets_a_call_in_another_thread_end(tmp_path: Path) -> None:
    started = tmp_path / "started"
    env = environment(STARTED=str(started))
    with grpc_sink() as sink, service("flask", tmp_path, {**env, "OTEL_AUDIT_ENDPOINT": sink.address}) as s:

        def call() -> None:
            with contextlib.suppress(OSError, HTTPException):  # the answer may come too late for the socket
                s.get("/slow")

        caller = threading.Thread(target=call)
        caller.start()
        wait_until(started.exists)
        assert s.stop(signal.SIGTERM) == -signal.SIGTERM
        caller.join()
        assert len(sink.spans) == 1


def test_calls_wait_for_a_receiver_that_is_away(tmp_path: Path) -> None:
    with grpc_sink() as sink, service("uvicorn", tmp_path, environment(OTEL_AUDIT_ENDPOINT=sink.address)) as s:
        sink.refuse = lambda attempt: (grpc.StatusCode.UNAVAILABLE, "away", ()) if attempt <= 3 else None
        for n in range(20):
            assert s.get(f"/things/{n}") == 200
        spans = sink.wait(20)
        assert numbers(spans) == list(range(2, 22))
        assert "UNAVAILABLE" in s.output()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_end_of_a_process_delivers_to_a_receiver_that_has_come_back(protocol: str, tmp_path: Path) -> None:
    """However long it was away: what waits for the next attempt tries now."""
    port = free_port()
    env = environment(OTEL_AUDIT_ENDPOINT=f"http://127.0.0.1:{port}", OTEL_AUDIT_PROTOCOL=protocol)
    with service("uvicorn", tmp_path, {**env, "OTEL_AUDIT_EXIT_TIMEOUT": "20"}) as s:
        assert [s.get(f"/things/{n}") for n in range(20)] == [200] * 20
        wait_until(lambda: "they wait in the spool" in s.output())
        with grpc_sink(port) if protocol == "grpc" else http_sink(port) as sink:
            s.stop(signal.SIGTERM)
            assert len(sink.spans) == 20
        assert "not all were delivered" not in s.output()


@pytest.mark.parametrize("kind", HTTP_SERVERS)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_without_a_receiver_calls_wait_in_the_spool_for_the_next_process(
    kind: str, signum: int, tmp_path: Path
) -> None:
    port = free_port()
    env = environment(OTEL_AUDIT_ENDPOINT=f"http://127.0.0.1:{port}", OTEL_AUDIT_EXIT_TIMEOUT="0.2")
    with service(kind, tmp_path, env) as s:
        assert [s.get(f"/things/{n}") for n in range(5)] == [200] * 5
        s.stop(signum)
        if signum == signal.SIGTERM:
            assert "the next process that spools there ships them" in s.output()
    with service(kind, tmp_path, env) as s, grpc_sink(port) as sink:
        assert s.get("/things/5") == 200
        spans = sink.wait(6)
        assert sorted(x.attributes["http.target"].partition("?")[0] for x in spans) == [
            f"/things/{n}" for n in range(6)
        ]
        assert len({x.attributes["audit.source.id"] for x in spans}) == 2
        s.stop()
    left = [path for path in (tmp_path / "spool").rglob("*") if path.suffix == ".spool"]
    assert left == [], "what was delivered is cleared away"


def test_otlp_over_http_to_the_telemetry_endpoint(tmp_path: Path) -> None:
    with (
        http_sink() as sink,
        service(
            "uvicorn",
            tmp_path,
            environment(
                OTEL_EXPORTER_OTLP_ENDPOINT=sink.address,
                OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
                OTEL_EXPORTER_OTLP_HEADERS="x-tenant=crm",
            ),
        ) as s,
    ):
        s.get("/things/1")
        sink.wait(1)
        assert sink.metadata[0]["x-tenant"] == "crm"


@pytest.mark.parametrize(
    ("env", "says", "recorded"),
    [
        ({"OTEL_AUDIT_ENDPOINT": "ftp://x"}, "NO CALL OF THIS PROCESS IS AUDITED", 0),
        ({"OTEL_AUDIT_PROTOCOL": "pigeon"}, "use grpc or http/protobuf", 0),
        ({"OTEL_SDK_DISABLED": "true"}, "OTEL_SDK_DISABLED", 0),
        ({"OTEL_AUDIT_CLIENTS": "/no/such/file"}, "OTEL_AUDIT_CLIENTS", 1),
        ({"OTEL_AUDIT_TRUSTED_PROXIES": "nonsense"}, "nonsense", 1),
        ({"OTEL_AUDIT_MODE": "fail-open"}, "OTEL_AUDIT_MODE", 1),
        ({"OTEL_AUDIT_SPOOL_DIR": "/proc/nowhere"}, "/proc/nowhere", 1),
    ],
)
@pytest.mark.parametrize("kind", HTTP_SERVERS)
def test_what_stands_in_the_way_is_said_once_and_the_application_serves(
    kind: str, env: dict[str, str], says: str, recorded: int, tmp_path: Path
) -> None:
    with grpc_sink() as sink:
        with service(kind, tmp_path, environment(**{"OTEL_AUDIT_ENDPOINT": sink.address, **env})) as s:
            assert s.get("/things/1") == 200
            s.stop()
            assert s.output().count(says) == 1
        assert len(sink.spans) == recorded


@pytest.mark.parametrize("kind", HTTP_SERVERS)
def test_hostile_requests_are_served_and_recorded(kind: str, tmp_path: Path) -> None:
    headers = [
        {"Authorization": "Bearer a.b.c"},
        {"Authorization": "Basic ???"},
        {"Authorization": "\xff\xfe"},
        {"X-API-Key": "x" * 20_000},
        {"X-Forwarded-For": ",".join(["1.1.1.1"] * 2000)},
        {"X-Forwarded-For": "'; DROP TABLE"},
        {"traceparent": "00-" + "0" * 32 + "-0-xx"},
        {"baggage": "audit.client.id=admin,otel-audit-identity=admin"},
    ]
    env = environment(OTEL_TRACES_SAMPLER="always_off", OTEL_AUDIT_TRUSTED_PROXIES="127.0.0.1")
    with grpc_sink() as sink, service(kind, tmp_path, {**env, "OTEL_AUDIT_ENDPOINT": sink.address}) as s:
        assert [s.get("/things/1", h) for h in headers] == [200] * len(headers)
        spans = sink.wait(len(headers))
        assert not any(x.attributes.get("audit.client.id") == "admin" for x in spans)


def test_without_a_distribution_the_first_request_finds_a_provider(tmp_path: Path) -> None:
    """The base install: nobody configures OpenTelemetry, and the calls are audited all the same."""
    env = environment(OTEL_PYTHON_CONFIGURATOR="none", OTEL_PYTHON_DISTRO="none")
    with grpc_sink() as sink, service("uvicorn", tmp_path, {**env, "OTEL_AUDIT_ENDPOINT": sink.address}) as s:
        s.get("/things/1", {"X-API-Key": "k"})
        s.get("/things/2")
        spans = sink.wait(2)
        assert "audit.client.id" in spans[0].attributes
        assert spans[0].resource["service.name"] == "things"


@pytest.mark.parametrize("distro", [True, False])
def test_fastapis_own_telemetry_is_enough(distro: bool, tmp_path: Path) -> None:
    """Recent versions trace themselves when nothing instruments them; they hand on headers without the connection."""
    env = environment(OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="fastapi,asgi", OTEL_TRACES_SAMPLER="always_off")
    if not distro:
        env |= {"OTEL_PYTHON_CONFIGURATOR": "none", "OTEL_PYTHON_DISTRO": "none"}
    with grpc_sink() as sink, service("uvicorn", tmp_path, {**env, "OTEL_AUDIT_ENDPOINT": sink.address}) as s:
        assert s.get("/things/1", {"X-API-Key": "k", "X-Forwarded-For": "203.0.113.9"}) == 200
        assert s.get("/broken", UNSAMPLED) == 500
        first, second = sink.wait(2)
        s.stop()
        assert len(sink.spans) == 2
        assert first.attributes["audit.client.id"].startswith("key:")
        assert first.attributes["audit.peer.ip"] == "127.0.0.1"
        assert first.attributes["audit.client.ip.source"] == "untrusted"
        assert second.attributes["audit.client.ip.source"] == "peer"
        assert [x.attributes["http.response.status_code"] for x in (first, second)] == [200, 500]


SCRIPTS = {
    "a provider made later is audited, once": """
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from otel_audit.capture import autoload
        autoload.pre_instrument()
        autoload.pre_instrument()
        provider = TracerProvider()
        autoload._installed.attach(provider)
        for tracer in (provider.get_tracer("a"), trace.get_tracer("b")):
            tracer.start_span("GET /", kind=trace.SpanKind.SERVER).end()
        """,
    "jobs of a script that installs capture itself are audited": """
        import otel_audit
        assert otel_audit.install()
        @otel_audit.audited(action="nightly")
        def nightly():
            assert otel_audit.annotate(contacts=3)
        nightly()
        nightly()
        """,
    "an action outside a request is audited": """
        from opentelemetry import trace
        tracer = trace.get_tracer("a")
        for name in ("purge", "rotate"):
            with tracer.start_as_current_span(name, attributes={"audit.action": name}):
                tracer.start_span("inner").end()
        """,
    "a forked child is a source of its own": """
        import os
        from opentelemetry import trace
        tracer = trace.get_tracer("a")
        tracer.start_span("parent", kind=trace.SpanKind.SERVER).end()
        trace.get_tracer_provider().force_flush()  # a connection is open, and a thread at work
        if os.fork() == 0:
            tracer.start_span("child", kind=trace.SpanKind.SERVER).end()
            raise SystemExit(0)
        os.wait()
        """,
    "spans that end after the shutdown of their provider are audited": """
        from opentelemetry import trace
        tracer = trace.get_tracer("a")
        tracer.start_span("before", kind=trace.SpanKind.SERVER).end()
        trace.get_tracer_provider().shutdown()
        tracer.start_span("after", kind=trace.SpanKind.SERVER).end()
        """,
}


@pytest.mark.parametrize("what", SCRIPTS)
def test_in_a_plain_script(what: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    lines = SCRIPTS[what].strip("\n").splitlines()
    script.write_text("\n".join(line[8:] for line in lines) + "\n")
    with grpc_sink() as sink:
        env = environment(OTEL_AUDIT_ENDPOINT=sink.address, OTEL_TRACES_SAMPLER="always_off")
        words = [sys.executable, str(script)]
        if "installs capture itself" not in what:
            words.insert(0, str(BIN / "opentelemetry-instrument"))
        done = subprocess.run(words, env=env, cwd=APPS, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert len(sink.spans) == 2, done.stderr
        assert len({(s.attributes["audit.source.id"], s.attributes["audit.source.seq"]) for s in sink.spans}) == 2
        if "fork" in what:
            assert len({s.attributes["audit.source.id"] for s in sink.spans}) == 2


def test_a_job_that_cannot_be_audited_does_not_begin_in_mode_fail_closed(tmp_path: Path) -> None:
    program = (
        "from opentelemetry import trace\n"
        "import otel_audit\n"
        "otel_audit.install()\n"
        "trace.set_tracer_provider(trace.NoOpTracerProvider())\n"
        "@otel_audit.audited(action='nightly')\n"
        "def nightly():\n"
        "    print('it ran, annotated:', otel_audit.annotate(contacts=3))\n"
        "nightly()\n"
    )
    for mode, ran in (("async", True), ("fail-closed", False)):
        env = environment(OTEL_AUDIT_MODE=mode, OTEL_AUDIT_SPOOL_DIR=str(tmp_path))
        done = subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout == ("it ran, annotated: False\n" if ran else "")
        assert ("NOT AUDITED" in done.stderr) is ran
        assert ("CaptureError" in done.stderr) is not ran


def test_a_tracer_that_is_older_than_capture_is_audited(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from otel_audit.capture.autoload import pre_instrument\n"
        "trace.set_tracer_provider(TracerProvider())\n"
        "tracer = trace.get_tracer('a')\n"
        "pre_instrument()\n"
        "tracer.start_span('GET /', kind=trace.SpanKind.SERVER).end()\n"
    )
    with grpc_sink() as sink:
        env = environment(OTEL_AUDIT_ENDPOINT=sink.address, OTEL_TRACES_SAMPLER="always_off")
        subprocess.run([sys.executable, str(script)], env=env, cwd=APPS, timeout=60, check=True)
        assert len(sink.spans) == 1


def test_importing_capture_needs_no_part_of_the_server() -> None:
    program = (
        "import sys; import otel_audit.capture.autoload, otel_audit.capture.exporter;"
        "print(sorted(m for m in ('pyarrow','duckdb','deltalake','numpy','msgspec','rich','click','starlette','uvicorn',"
        "'grpc','requests') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
