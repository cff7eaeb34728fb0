"""`otel-audit check` on real services: what stands in the way is named with its remedy, and nothing is left behind."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import psutil
import pytest

from otel_audit._check_destination import Tried, try_destination
from otel_audit.capture._apps import FRAMEWORKS
from tests.capture_support import APPS, BIN, environment, free_port, grpc_sink, http_sink
from tests.certificates import Authority
from tests.integration.test_capture_tls import receiver

CHECK_APPS = Path(__file__).parent / "check_apps"
INSTRUMENT = str(BIN / "opentelemetry-instrument")


def check(
    command: list[str], env: dict[str, str], *options: str, cwd: Path = APPS, code: int | None = None
) -> dict[str, Any]:
    """The JSON report; the exit code must agree with it."""
    words = [sys.executable, "-m", "otel_audit", "check", "--json", "--timeout", "60", *options, "--", *command]
    path = os.pathsep.join([str(BIN), env.get("PATH", "")])
    done = subprocess.run(
        words, cwd=cwd, env={**env, "PATH": path}, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["verdict"] == "audited" else 1), done.stderr
    if code is not None:
        assert done.returncode == code, done.stdout
    return found


def problems(found: dict[str, Any]) -> list[str]:
    return [problem["id"] for problem in found["problems"]]


def uvicorn(app: str = "fastapi_app:app") -> list[str]:
    return [INSTRUMENT, str(BIN / "uvicorn"), app, "--port", str(free_port())]


def flask() -> list[str]:
    return [INSTRUMENT, str(BIN / "flask"), "--app", "flask_app", "run", "--port", str(free_port())]


def test_a_service_that_is_audited_and_nothing_is_left_behind(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    clients = tmp_path / "clients.json"
    clients.write_text(json.dumps([{"id": "web", "key": "k"}, {"id": "ops"}]))
    with grpc_sink() as ours, grpc_sink() as theirs:
        env = environment(
            OTEL_AUDIT_ENDPOINT=ours.address,
            OTEL_AUDIT_SPOOL_DIR=str(spool),
            OTEL_AUDIT_CLIENTS=str(clients),
            OTEL_AUDIT_TRUSTED_PROXIES="10.0.0.0/8",
            OTEL_TRACES_EXPORTER="otlp",
            OTEL_EXPORTER_OTLP_ENDPOINT=theirs.address,
            OTEL_BSP_SCHEDULE_DELAY="10",
        )
        found = check(uvicorn(), env, "--url", "/things/7?x=1", code=0)
        assert ours.spans == []
        assert ours.about == [], "the log must not hear of a check"
        assert ours.attempts == 1, "an empty request, to see whether it answers"
        assert theirs.spans == [], "nor must anybody's tracing"
    assert found["destination"]["reachable"] is True
    assert not list(spool.rglob("*.spool"))
    process = found["process"]
    assert process["installed"] is True
    assert process["settings"]["clients_known"] == 2
    assert process["settings"]["trusted_proxies"] == ["10.0.0.0/8"]
    assert process["tracing"]["exporters"] == ["OTLPSpanExporter"]
    assert process["tracing"]["sampler"].startswith("ParentBased")
    (app,) = process["apps"]
    routes = {r["route"]: r for r in app["routes"] if r["method"] == "GET"}
    assert routes["/things/{thing_id}"] | {"operation": None} == {
        "method": "GET",
        "route": "/things/{thing_id}",
        "operation": None,
        "action": "read",
        "service": "things",
        "mode": "async",
        "hidden_by": None,
    }
    (call,) = found["calls"]
    assert call["status"] == 200
    assert call["record"]["audit.peer.ip"] == "127.0.0.1"
    left = [p for p in psutil.process_iter() if _environ(p).get("OTEL_AUDIT_SPOOL_DIR") == str(spool)]
    assert left == [], "all its processes have ended"


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        found: dict[str, str] = process.environ()
    except psutil.Error:
        return {}
    return found


def test_rules_show_in_the_routes(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[rule]]\nroute = "/things/{id}"\nmethod = "GET"\naction = "look-up"\nservice = "inventory"\nmode = "durable"\n'
    )
    found = check(flask(), environment(OTEL_AUDIT_RULES=str(rules)), "--offline", code=0)
    (app,) = found["process"]["apps"]
    named = {r["route"]: (r["action"], r["service"], r["mode"]) for r in app["routes"]}
    assert named["/things/<int:thing_id>"] == ("look-up", "inventory", "durable")
    assert named["/slow"] == ("list", "things", "async")


def test_prefork_workers_are_looked_into() -> None:
    words = [INSTRUMENT, str(BIN / "gunicorn"), "flask_app:app", "--bind", f"127.0.0.1:{free_port()}", "--workers", "2"]
    found = check(words, environment(), "--offline", "--url", "/things/1", code=0)
    assert found["process"]["apps"][0]["framework"] == "flask"
    assert found["calls"][0]["record"] is not None


def test_not_under_opentelemetry_instrument() -> None:
    found = check(uvicorn()[1:], environment(), code=1)
    assert problems(found) == ["not-started"]
    assert "opentelemetry-instrument" in found["problems"][0]["remedy"]


def test_python_that_ignores_the_environment() -> None:
    words = [INSTRUMENT, sys.executable, "-I", "-m", "http.server", str(free_port()), "--bind", "127.0.0.1"]
    assert problems(check(words, environment(), code=1)) == ["isolated"]


def test_otel_audit_is_not_installed_for_the_command(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    python = str(tmp_path / "bare" / "bin" / "python")
    env = {k: v for k, v in environment().items() if k != "PYTHONPATH"}
    words = [python, "-m", "http.server", str(free_port()), "--bind", "127.0.0.1"]
    checkout = Path(__file__).parents[2]
    found = check(words, env, cwd=checkout if os.environ.get("PYTHONPATH") else APPS, code=1)
    assert problems(found) == ["not-there"]
    assert found["problems"][0]["remedy"] == f"{python} -m pip install otel-audit"


def test_the_sdk_is_disabled() -> None:
    found = check(uvicorn(), environment(OTEL_SDK_DISABLED="true"), "--offline", code=1)
    assert "sdk-disabled" in problems(found)


def test_the_instrumentation_is_switched_off() -> None:
    found = check(flask(), environment(OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="flask"), "--offline", code=1)
    assert problems(found) == ["disabled"]


def _without(package: str, folder: Path) -> Path:
    """An environment like this one that lacks an instrumentation."""
    name = package.rpartition("-")[2]
    here = next(Path(p) for p in sys.path if (Path(p) / "flask").is_dir())
    there = folder / "packages"
    (there / "opentelemetry" / "instrumentation").mkdir(parents=True)
    for entry in here.iterdir():
        if entry.name != "opentelemetry" and not entry.name.startswith(package.replace("-", "_")):
            (there / entry.name).symlink_to(entry)
    for inner in ("opentelemetry", "opentelemetry/instrumentation"):
        for entry in (here / inner).iterdir():
            if not (there / inner / entry.name).exists() and entry.name != name:
                (there / inner / entry.name).symlink_to(entry)
    return there


def test_an_instrumentation_is_missing(tmp_path: Path) -> None:
    packages = _without("opentelemetry-instrumentation-flask", tmp_path)
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    checkout = Path(__file__).parents[2]
    env = environment(PYTHONPATH=os.pathsep.join([str(checkout), str(packages)]))
    words = [str(python), "-c", "from opentelemetry.instrumentation.auto_instrumentation import run; run()"]
    words += [str(python), "-m", "flask", "--app", "flask_app", "run", "--port", str(free_port())]
    found = check(words, env, "--offline", code=1)
    assert problems(found) == ["no-package"], found
    assert found["problems"][0]["remedy"] == "pip install opentelemetry-instrumentation-flask"


def test_excluded_urls_hide_routes() -> None:
    env = environment(OTEL_PYTHON_FLASK_EXCLUDED_URLS="slow,done")
    found = check(flask(), env, "--url", "/done", "--offline", code=1)
    assert problems(found) == ["excluded", "no-record"]
    assert "GET /slow" in found["problems"][0]["what"]
    hidden = {r["route"] for r in found["process"]["apps"][0]["routes"] if r["hidden_by"]}
    assert hidden == {"/slow", "/done"}
    assert "excluded" in [n["id"] for n in check(flask(), env, "--offline", "--allow-excluded", code=0)["notices"]]


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("OTEL_AUDIT_ENDPOINT", "ftp://nowhere", "not-installed"),
        ("OTEL_AUDIT_RULES", "/nowhere/rules.toml", "setting"),  # audited, without the names it was to give
    ],
)
def test_a_setting_that_cannot_be_followed_stands_in_the_way(setting: str, value: str, problem: str) -> None:
    found = check(flask(), environment(**{setting: value}), "--offline", code=1)
    assert problem in problems(found)
    assert any(value in p["what"] for p in found["problems"]), found["problems"]


def test_settings_that_cannot_be_meant() -> None:
    wrong = {
        "OTEL_AUDIT_MODE": "strict",
        "OTEL_AUDIT_CLIENTS": "/nowhere/clients.json",
        "OTEL_AUDIT_TRUSTED_PROXIES": "everyone",
        "OTEL_AUDIT_SPOOL_DIR": "/proc/nowhere",
    }
    found = check(flask(), environment(**wrong), "--offline", code=1)
    assert sorted(problems(found)) == ["setting", "setting", "setting", "spool"]
    for value in wrong.values():
        assert any(value in p["what"] for p in found["problems"]), found["problems"]


def test_a_destination_that_is_not_there_or_wants_another_password() -> None:
    found = check(flask(), environment(OTEL_AUDIT_ENDPOINT=f"http://127.0.0.1:{free_port()}"), code=1)
    assert problems(found) == ["destination"]
    with http_sink() as ours:
        ours.refuse = lambda _: (401, {})
        env = environment(OTEL_AUDIT_ENDPOINT=ours.address, OTEL_AUDIT_PROTOCOL="http/protobuf")
        found = check(flask(), {**env, "OTEL_AUDIT_HEADERS": "authorization=Bearer%20s3cret"}, code=1)
        assert ours.metadata[0]["authorization"] == "Bearer s3cret"
    assert problems(found) == ["destination"]
    assert "401" in found["problems"][0]["what"]
    assert "s3cret" not in json.dumps(found)


@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize("spoken", ["grpc", "http"])
def test_a_destination_that_wants_tls(spoken: str, mutual: bool, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    about: dict[str, Any] = {"timeout_s": 5.0, "client_key": None, "client_certificate": None, "gzip": False}
    with receiver(spoken, authority, mutual=mutual) as peers:
        address = peers.address.removeprefix("https://")

        def ask(kind: str, tls: bool, certificate: str | None) -> Tried:
            target = address if kind == "grpc" else f"http{'s' if tls else ''}://{address}/v1/traces"
            return try_destination({"kind": kind, "target": target, "tls": tls, "certificate": certificate, **about})

        for kind in ("grpc", "http"):
            assert ask(kind, False, None).answer == "something answers there, but with TLS"
        assert "OTEL_AUDIT_CERTIFICATE" in ask(spoken, True, None).remedy
        found = ask(spoken, True, str(authority.file))
        assert found.reachable != mutual
        assert "something answers" not in found.answer, "it wants a certificate, and nothing else is wrong"
        if not mutual:
            found = ask("http" if spoken == "grpc" else "grpc", True, str(authority.file))
            assert found.answer.startswith(f"something answers there, but in {'gRPC' if spoken == 'grpc' else 'HTTP'}")


def test_secrets_are_not_printed() -> None:
    env = environment(OTEL_AUDIT_HASH_KEY="pepper-9", OTEL_AUDIT_HEADERS="x-token=salt-9")
    words = [sys.executable, "-m", "otel_audit", "check", "--offline", "--", *flask()]
    done = subprocess.run(words, cwd=APPS, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert "NOT" not in done.stdout.splitlines()[-1]
    assert "pepper-9" not in done.stdout + done.stderr
    assert "salt-9" not in done.stdout + done.stderr
    assert "a secret hash" in done.stdout


def test_a_local_log_is_not_made() -> None:
    folder = APPS / "never-made"
    found = check(flask(), environment(OTEL_AUDIT_ENDPOINT=f"file:{folder}"), code=0)
    assert found["destination"]["reachable"] is True
    assert not folder.exists()


@pytest.mark.parametrize(
    ("wish", "problem"), [("sampler", "sampler"), ("propagator", None), ("propagator-behind-our-back", "propagator")]
)
def test_an_application_that_replaces_what_was_installed(wish: str, problem: str | None) -> None:
    env = environment(MEDDLE=wish)
    found = check(uvicorn("meddling_app:app"), env, "--offline", cwd=CHECK_APPS, code=1 if problem else 0)
    assert problems(found) == ([problem] if problem else [])


@pytest.mark.parametrize("group", ["opentelemetry_pre_instrument", "opentelemetry_distro"])
def test_another_package_that_makes_opentelemetry_give_up(group: str, tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text("def begin(*_):\n    raise ValueError('out of order')\n")
    info = tmp_path / "faulty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\nfaulty = faulty:begin\n")
    env = environment(OTEL_PYTHON_DISTRO="faulty")
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env.get("PYTHONPATH", "")])
    found = check(flask(), env, "--offline", code=1)
    assert "auto-initialize" in problems(found)
    assert any("out of order" in p["what"] for p in found["problems"])


@pytest.mark.parametrize("program", ["raise SystemExit(3)", "print('done')"])
def test_a_command_that_ends_at_once(program: str) -> None:
    found = check([INSTRUMENT, sys.executable, "-c", program], environment(), "--offline", code=1)
    assert problems(found) == ["ended"]
    assert found["exit_code"] == (3 if "3" in program else 0)


@pytest.mark.parametrize(
    "words",
    [
        ["--", "no-such-command"],
        ["--", INSTRUMENT, "--service_name", "shop", "no-such-command"],
        ["--"],
        ["--timeout", "soon", "--", "true"],
    ],
)
def test_usage(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "otel_audit", "check", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "error" in done.stderr


def test_the_routes_of_every_framework() -> None:
    words = [INSTRUMENT, sys.executable, "all_frameworks.py", str(free_port())]
    found = check(words, environment(), "--offline", cwd=CHECK_APPS, code=1)
    assert problems(found) == ["no-instrumentation"], "of falcon.asgi"
    apps = {app["framework"]: app for app in found["process"]["apps"]}
    assert set(apps) == {*FRAMEWORKS}
    routes = {
        name: [(r["method"], r["route"], r["operation"], r["action"]) for r in app["routes"]]
        for name, app in apps.items()
    }
    assert routes["fastapi"][0] == ("GET", "/v1/fastapi/{thing_id}", "readThing", "read")
    assert ("POST", "/sub/inner", "view", "create") in routes["fastapi"]
    assert routes["starlette"] == [("DELETE", "/starlette/{x}", "view", "delete")]
    assert ("PUT", "/flask/<x>", "flask-thing", "update") in routes["flask"]
    assert routes["django"] == [("", "django/<int:pk>", "thing", None)]
    assert routes["aiohttp"] == [("PATCH", "/aiohttp/{x}", "view", "update")]
    assert routes["tornado"] == [("", r"/tornado/(\d+)", "RequestHandler", None)]
    assert routes["falcon"] == [("GET", "/falcon/{x}", "Resource.on_get", "read")]
    assert routes["pyramid"] == [("GET", "/pyramid/{x}", "pyramid-thing", "read")]
    assert routes["grpc"] == [("", "things.Things/Read", None, "Read")]
