"""Beside other people's distributions, in real processes: every call arrives once and named, and they work as before."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.capture_support import Sink, grpc_sink, http_sink, wait_until
from tests.compat.support import CALLS, NAMED, assert_all_arrived, call, datadog_agent, served

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

UVICORN = ["opentelemetry-instrument", "uvicorn", "fastapi_app:app", "--port", "{port}"]
FLASK = ["opentelemetry-instrument", "flask", "--app", "flask_app", "run", "--port", "{port}"]
GRPC = ["opentelemetry-instrument", "python", "-m", "grpc_app", "{port}"]
SAMPLERS = {"default": {}, "always_off": {"OTEL_TRACES_SAMPLER": "always_off"}}
PLAIN = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_BSP_SCHEDULE_DELAY": "50"}
AWS = {
    **PLAIN,
    "OTEL_PYTHON_DISTRO": "aws_distro",
    "OTEL_PYTHON_CONFIGURATOR": "aws_configurator",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_TRACES_SAMPLER": "always_on",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def server_spans(sink: Sink) -> int:
    return sum(span.kind == 2 for span in sink.spans)


def assert_theirs(theirs: Sink, sampler: str, unsampled: int = 1) -> None:
    """Their exporter sends what it sent before: the sampled calls."""
    if sampler == "always_off":
        assert theirs.spans == []
    else:
        wait_until(lambda: server_spans(theirs) >= CALLS - unsampled, 30)
        assert server_spans(theirs) == CALLS - unsampled


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("words", [UVICORN, FLASK], ids=["fastapi", "flask"])
@pytest.mark.parametrize("name", ["oldest", "newest"])
def test_the_range_of_versions_that_pyproject_declares(
    name: str, words: list[str], sampler: str, tmp_path: Path
) -> None:
    with grpc_sink() as ours, grpc_sink() as theirs:
        env = {"OTEL_AUDIT_ENDPOINT": ours.address, "OTEL_EXPORTER_OTLP_ENDPOINT": theirs.address}
        with served(name, words, tmp_path, {**PLAIN, **env, **SAMPLERS[sampler]}) as s:
            call(s)
            assert_all_arrived(s, ours)
        assert_theirs(theirs, sampler)


@pytest.mark.parametrize("name", ["oldest", "newest"])
def test_grpc_services_of_that_range(name: str, tmp_path: Path) -> None:
    with grpc_sink() as ours:
        env = {"OTEL_AUDIT_ENDPOINT": ours.address, "OTEL_TRACES_SAMPLER": "always_off"}
        with served(name, GRPC, tmp_path, env) as s:
            with grpc.insecure_channel(f"127.0.0.1:{s.port}") as channel:
                read: Any = channel.unary_unary("/things.Things/Read")
                for _ in range(CALLS):
                    assert read(b"x", metadata=(("x-api-key", NAMED["X-API-Key"]),), timeout=20) == b"x"
            spans = ours.wait(CALLS)
            s.stop()
        assert len(ours.spans) == CALLS
        assert {x.attributes["rpc.method"] for x in spans} == {"Read"}
        assert {x.attributes.get("audit.client.id") for x in spans} == {"web"}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("words", [UVICORN, FLASK], ids=["fastapi", "flask"])
def test_aws_distro_for_opentelemetry(words: list[str], sampler: str, tmp_path: Path) -> None:
    with grpc_sink() as ours, http_sink() as theirs:
        env = {
            "OTEL_AUDIT_ENDPOINT": ours.address,
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{theirs.address}/v1/traces",
        }
        with served("aws", words, tmp_path, {**AWS, **env, **SAMPLERS[sampler]}) as s:
            call(s)
            assert_all_arrived(s, ours)
        # always_on samples also what the caller did not want.
        assert_theirs(theirs, sampler, unsampled=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("words", [UVICORN, FLASK], ids=["fastapi", "flask"])
def test_elastic_distribution(words: list[str], sampler: str, tmp_path: Path) -> None:
    with grpc_sink() as ours, grpc_sink() as theirs:
        env = {"OTEL_AUDIT_ENDPOINT": ours.address, "OTEL_EXPORTER_OTLP_ENDPOINT": theirs.address}
        with served("elastic", words, tmp_path, {**PLAIN, **env, **SAMPLERS[sampler]}) as s:
            call(s)
            assert_all_arrived(s, ours)
        assert_theirs(theirs, sampler)


@pytest.mark.parametrize("bridge", ["true", "false"])
@pytest.mark.parametrize("words", [UVICORN, FLASK], ids=["fastapi", "flask"])
@pytest.mark.parametrize("first", ["opentelemetry-instrument", "ddtrace-run"])
def test_ddtrace(first: str, words: list[str], bridge: str, tmp_path: Path) -> None:
    with grpc_sink() as ours, datadog_agent() as (agent, payloads):
        env = {
            "OTEL_AUDIT_ENDPOINT": ours.address,
            "DD_TRACE_OTEL_ENABLED": bridge,
            "DD_TRACE_AGENT_URL": agent,
            "DD_TRACE_ENABLED": "true",  # it takes OTEL_TRACES_EXPORTER=none for its own
            "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
            "DD_REMOTE_CONFIGURATION_ENABLED": "false",
            "DD_TRACE_STARTUP_LOGS": "false",
        }
        order = ["ddtrace-run", *words] if first == "ddtrace-run" else [words[0], "ddtrace-run", *words[1:]]
        with served("newest", order, tmp_path, env) as s:
            call(s)
            if first == "opentelemetry-instrument" and bridge == "true":  # then ddtrace makes the spans
                assert "DD_TRACE_OTEL_ENABLED=false" in s.output()
                assert "NO CALL IS AUDITED" in s.output()
                return
            if first == "opentelemetry-instrument":  # in the other order it keeps ddtrace out, with us or without
                wait_until(lambda: b"things" in b"".join(payloads), 30)
            assert_all_arrived(s, ours)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_provider_that_logfire_makes_later(sampler: str, tmp_path: Path) -> None:
    words = ["opentelemetry-instrument", "uvicorn", "logfire_app:app", "--port", "{port}"]
    with grpc_sink() as ours, http_sink() as theirs:
        env = {
            "OTEL_AUDIT_ENDPOINT": ours.address,
            "OTEL_PYTHON_CONFIGURATOR": "none",
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*",
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{theirs.address}/v1/traces",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        with served("newest", words, tmp_path, {**env, **SAMPLERS[sampler]}) as s:
            call(s)
            assert_all_arrived(s, ours)
        assert_theirs(theirs, sampler)
