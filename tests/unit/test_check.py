"""How `otel-audit check` judges what it was told; the real runs are in tests/integration/test_check.py."""

from typing import Any

import pytest

from otel_audit._check_run import Ran
from otel_audit._check_text import text_of
from otel_audit.check import judge
from otel_audit.cli import run

COMMAND = ["opentelemetry-instrument", "uvicorn", "shop:app"]


def findings(**more: Any) -> dict[str, Any]:
    """Those of a process in which all is well."""
    return {
        "pid": 7,
        "python": "/bin/python",
        "version": "1",
        "modules": 900,
        "installed": True,
        "log": [],
        "settings": {
            "destination": {
                "kind": "grpc",
                "target": "localhost:4317",
                "text": "OTLP/gRPC localhost:4317",
                "headers": [],
            },
            "spool": {"folder": "/spool", "problems": []},
            "spool_bytes": 1048576,
            "mode": "async",
            "clients": None,
            "clients_known": 0,
            "hash_key": None,
            "api_key_header": "x-api-key",
            "client_header": None,
            "resolver": None,
            "jwks_path": None,
            "trusted_proxies": [],
            "trusted_hops": None,
            "rules_path": None,
        },
        "apps": [{"framework": "flask", "name": "shop", "instrumented": True, "routes": []}],
        "frameworks": [framework()],
        "unknown_frameworks": [],
        "middleware": [],
        "tracing": {
            "provider": "opentelemetry.sdk.trace.TracerProvider",
            "configured": True,
            "attached": True,
            "sampler": "AlwaysOnSampler",
            "sampler_kept": True,
            "exporters": [],
            "attributes_max": 128,
            "service": "shop",
        },
        "propagators": ["IdentityPropagator"],
        **more,
    }


def framework(**more: Any) -> dict[str, Any]:
    return {
        "name": "flask",
        "version": "3",
        "package": "opentelemetry-instrumentation-flask",
        "package_version": "0.66b1",
        "instrumented": True,
        "conflict": None,
        "disabled_by": None,
        **more,
    }


def problems(**more: Any) -> list[str]:
    result = judge(COMMAND, Ran(findings=[findings(**more)], listens=["127.0.0.1:1"]), offline=True)
    assert text_of(result).splitlines()[-1].startswith("AUDITED" if result.audited else "NOT")
    assert {p["id"] for p in result.as_dict()["problems"]} == {p.id for p in result.problems}
    return [p.id for p in result.problems]


def bare(**more: Any) -> dict[str, Any]:
    """An application without instrumentation, and why."""
    app = {"framework": "flask", "name": "", "instrumented": False, "routes": []}
    return {"apps": [app], "frameworks": [framework(**{"instrumented": False, **more})]}


def test_nothing_is_in_the_way() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"package_version": None}, "no-package"),
        ({"conflict": 'requested: "flask >= 1.0" but found: "flask 0.9"'}, "conflict"),
        ({"disabled_by": "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"}, "disabled"),
        ({"instrumented": True}, "made-early"),
        ({}, "not-instrumented"),
        ({"package": None}, "no-instrumentation"),
    ],
)
def test_why_an_application_is_not_instrumented(more: dict[str, Any], expected: str) -> None:
    assert problems(**bare(**more)) == [expected]
    assert problems(**bare(**more), middleware=["wsgi"]) == [], "wrapped by hand"


def test_a_framework_nobody_instruments_and_none_at_all() -> None:
    assert problems(apps=[], frameworks=[], unknown_frameworks=["sanic"]) == ["no-instrumentation"]
    assert problems(apps=[], frameworks=[]) == ["no-application"]
    assert problems(apps=[], frameworks=[], middleware=["asgi"]) == []


@pytest.mark.parametrize(
    ("tracing", "expected"),
    [
        ({"attached": False}, ["processor"]),
        ({"sampler_kept": False}, ["sampler"]),
        ({"attributes_max": 16}, []),
        ({"configured": False, "provider": "opentelemetry.trace.ProxyTracerProvider"}, []),
        ({"configured": False, "provider": "ddtrace.internal.opentelemetry.trace.TracerProvider"}, ["provider"]),
    ],
)
def test_what_an_application_can_do_to_tracing(tracing: dict[str, Any], expected: list[str]) -> None:
    assert problems(tracing={**findings()["tracing"], **tracing}) == expected


def test_the_process_that_serves_is_judged_and_complaints_of_all_count() -> None:
    supervisor = findings(pid=1, apps=[], frameworks=[])
    complaint = {"level": "WARNING", "logger": "otel_audit.capture", "text": "read settings of otel-audit: X=1 is odd"}
    result = judge(
        COMMAND, Ran(findings=[supervisor | {"log": [complaint]}, findings()], listens=["a:1"]), offline=True
    )
    assert result.process["pid"] == 7
    assert [p.id for p in result.problems] == ["setting"]


def test_what_a_process_says_cannot_steer_the_terminal() -> None:
    complaint = {"level": "WARNING", "logger": "otel_audit.capture", "text": "read \x1b[2J\nsettings"}
    result = judge(
        COMMAND, Ran(findings=[findings(log=[complaint])], listens=["a:1"], output="\x1b[31mred"), offline=True
    )
    assert "\x1b" not in text_of(result)


def test_the_command_line_of_the_whole_install_hands_over(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--debug", "check", "--timeout", "5", "--", "no-such-command", "--flag"]) == 2
    assert "run no-such-command" in capfd.readouterr().err
    assert run(["check", "--help"]) == 0
    assert "usage: otel-audit check" in capfd.readouterr().out
    assert run([]) == 0
    assert "check " in capfd.readouterr().out
