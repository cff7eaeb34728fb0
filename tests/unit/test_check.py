"""How `otel-audit check` judges what it was told; the real runs are in tests/integration/test_check.py."""

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from otel_audit import __main__, __version__
from otel_audit._check_destination import Tried, try_destination
from otel_audit._check_loading import started_by
from otel_audit._check_run import Called, Ran, _address
from otel_audit._check_text import text_of
from otel_audit.check import judge
from otel_audit.cli import run
from tests.capture_support import free_port, grpc_sink, http_sink

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
                "tls": True,
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
    result = judge(COMMAND, Ran(findings=[findings(log=[complaint])], exit_code=1, output="\x1b[31mred"), offline=True)
    text = text_of(result)
    assert "\x1b" not in text
    assert r"read \x1b[2J settings" in text
    assert r"| \x1b[31mred" in text
    assert "OTLP/gRPC localhost:4317, TLS: not tried" in text


def test_the_command_line_of_the_whole_install_hands_over(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--debug", "check", "--timeout", "5", "--", "no-such-command", "--flag"]) == 2
    assert "run no-such-command" in capfd.readouterr().err
    assert run(["check", "--help"]) == 0
    assert "usage: otel-audit check" in capfd.readouterr().out
    assert run([]) == 0
    assert "check " in capfd.readouterr().out


# --- the destination --------------------------------------------------------------------------------------------------------
def tried(kind: str, target: str, *, tls: bool = False) -> Tried:
    about: dict[str, Any] = {"certificate": None, "client_key": None, "client_certificate": None, "gzip": False}
    return try_destination({"kind": kind, "target": target, "tls": tls, "timeout_s": 5.0, **about})


def test_a_local_log_that_another_process_holds(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    lock = tmp_path / "lock"
    lock.write_text("process 7 on host since then\n")
    assert tried("log", str(tmp_path)) == Tried(True)
    with lock.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = tried("log", str(tmp_path))
    assert not found.reachable
    assert "open for writing by process 7 on host since then; records would wait in the spool" in found.answer
    assert "ship over OTLP to that process" in found.remedy
    assert tried("log", str(tmp_path)) == Tried(True), "the check has let the lock go"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journal", "lock"], "nothing is left there"
    assert lock.read_text() == "process 7 on host since then\n"


def test_a_local_log_that_cannot_be_made(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    wrong = {
        "/proc/x": "/proc takes no new folder",
        str(plain): "is not a folder",
        str(plain / "log"): "is not a folder",
    }
    if os.geteuid():
        (tmp_path / "shut").mkdir(mode=0o500)
        wrong[str(tmp_path / "shut")] = "cannot be written to (Permission denied)"
    for folder, what in wrong.items():
        found = tried("log", folder)
        assert not found.reachable
        assert what in found.answer
        assert "pip install" not in found.remedy
        assert "OTEL_AUDIT_ENDPOINT" in found.remedy
    assert tried("log", str(tmp_path / "a" / "b")) == Tried(True)
    assert not (tmp_path / "a").exists()


def test_a_destination_that_speaks_another_protocol() -> None:
    with grpc_sink() as over_grpc, http_sink() as over_http:
        grpc, http = (sink.address.removeprefix("http://") for sink in (over_grpc, over_http))
        for address, kind, asked in ((http, "http", "grpc"), (grpc, "grpc", "http")):
            path, protocol = "/v1/traces", {"grpc": "grpc", "http": "http/protobuf"}[kind]
            for tls in (False, True):
                scheme = "https" if tls else "http"
                found = tried(asked, address if asked == "grpc" else f"{scheme}://{address}{path}", tls=tls)
                assert not found.reachable
                assert found.answer.startswith("something answers there, but ")
                assert f"OTEL_AUDIT_PROTOCOL={protocol}" in found.remedy
                assert ("without TLS" in found.answer) == tls
            same = tried(kind, address if kind == "grpc" else f"https://{address}{path}", tls=True)
            assert same.answer == "something answers there, but without TLS"
            assert "http://" in same.remedy
        assert over_grpc.spans == over_http.spans == []


def test_headers_meant_for_tls_are_sent_on_no_other_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_sink() as sink:
        target = sink.address.replace("http:", "https:")
        monkeypatch.setenv("OTEL_AUDIT_ENDPOINT", target)
        monkeypatch.setenv("OTEL_AUDIT_PROTOCOL", "http/protobuf")
        monkeypatch.setenv("OTEL_AUDIT_HEADERS", "authorization=s3cret")
        assert "without TLS" in tried("http", f"{target}/v1/traces", tls=True).answer
        assert sink.metadata, "it was asked without TLS"
        assert all("authorization" not in metadata for metadata in sink.metadata)


def test_a_destination_where_nothing_listens_or_says_no() -> None:
    assert "otel-audit serve" in tried("grpc", f"127.0.0.1:{free_port()}").remedy
    with http_sink() as sink:
        sink.refuse = lambda _: (401, {})
        assert "401" in tried("http", f"{sink.address}/v1/traces").answer
        assert sink.attempts == 1, "what has been understood is not asked in another way"


# --- the rest ---------------------------------------------------------------------------------------------------------------
def test_a_call_of_a_service_that_speaks_grpc_alone() -> None:
    app = {"framework": "grpc", "name": "", "instrumented": True, "routes": []}
    found = findings(apps=[app], frameworks=[framework(name="grpc")])
    call = Called("http://127.0.0.1:1/x", problem="what came back is not HTTP")
    result = judge(COMMAND, Ran(findings=[found], listens=["a:1"], calls=[call]), offline=True)
    assert [p.id for p in result.problems] == ["call"]
    assert "gRPC" in result.problems[0].remedy


def test_nobody_is_told_to_give_the_option_that_was_given() -> None:
    route = {"method": "GET", "route": "/x", "hidden_by": "E", "action": None, "service": None, "mode": "async"}
    app = {"framework": "flask", "name": "", "instrumented": True, "routes": [route]}
    ran = Ran(findings=[findings(apps=[app])], listens=["a:1"])
    assert "--allow-excluded" in judge(COMMAND, ran, offline=True).problems[0].remedy
    (notice,) = (n for n in judge(COMMAND, ran, allow_excluded=True, offline=True).notices if n.id == "excluded")
    assert notice.remedy == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0100007F:1F90", "127.0.0.1:8080"),
        ("00000000:1F90", "127.0.0.1:8080"),
        ("00000000000000000000000000000000:1F90", "[::1]:8080"),
        ("00000000000000000000000001000000:1F90", "[::1]:8080"),
        ("0000000000000000FFFF00000100007F:1F90", "127.0.0.1:8080"),
        ("0000000000000000FFFF000000000000:1F90", "127.0.0.1:8080"),
    ],
)
def test_addresses_of_proc(text: str, expected: str) -> None:
    assert _address(text) == expected


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("opentelemetry-instrument uvicorn shop:app", "uvicorn"),
        ("/bin/opentelemetry-instrument --service_name shop --id_generator=x -- flask run", "flask"),
        ("opentelemetry-instrument --version", None),
        ("env A=1 opentelemetry-instrument uvicorn", None),
    ],
)
def test_what_opentelemetry_instrument_starts(command: str, expected: str | None) -> None:
    assert started_by(command.split()) == expected


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["find"]])
def test_the_command_of_the_base_install(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__, "find_spec", lambda _: None)
    monkeypatch.setattr("sys.argv", ["otel-audit", *words])
    code = __main__.main()
    out, err = capfd.readouterr()
    if words == ["find"]:
        assert (code, out) == (1, "")
        assert "pip install 'otel-audit[server]'" in err
    elif words == ["--version"]:
        assert (code, out) == (0, f"otel-audit, version {__version__}\n")
    else:
        assert code == 0
        assert all(said in out for said in ("\n  check ", "\n  spool ", "pip install 'otel-audit[server]'"))
