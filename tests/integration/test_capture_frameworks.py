"""Every framework, served for real, knowing nothing of auditing: each answered call is one record, exact in all it says.

All services are started once, side by side, with a sampler that drops everything.
"""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from tests.capture_support import basic, environment, free_port, grpc_sink, jwt, wait_until
from tests.frameworks_support import APPS, COMMANDS, SERVICE, Running, rpc, services

HTTP = ["fastapi", "starlette", "flask", "django-wsgi", "django-asgi", "aiohttp", "tornado", "falcon", "pyramid"]
RPC = ["grpc", "grpc-aio"]
WEBSOCKETS = ["fastapi", "starlette", "aiohttp", "tornado"]
MOUNTED = ["fastapi", "starlette", "flask", "django-wsgi", "django-asgi", "aiohttp"]
INSTALLED = [name for name in COMMANDS if name.startswith("install-")]

UNSAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
CLIENTS = '[{"id": "web", "name": "Web front end", "key": "web-key"}]'


def route_of(name: str, route: str, **parameters: str) -> str:
    """A route the way the framework writes it."""
    name = name.removeprefix("install-").removesuffix("-within")
    forms = {"starlette": "{{{0}:{1}}}", "flask": "<{1}:{0}>", "django": "<{1}:{0}>"}
    form = forms.get(name.partition("-")[0], "{{{0}}}")
    for parameter, kind in parameters.items():
        route = route.replace(f"{{{parameter}}}", form.format(parameter, kind))
    return route.removeprefix("/") if name.startswith("django") else route


def said(record: dict[str, Any], *columns: str) -> dict[str, Any]:
    return {c: record.get(c) for c in columns}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Running]]:
    folder = tmp_path_factory.mktemp("frameworks")
    clients = folder / "clients.json"
    clients.write_text(CLIENTS)
    with grpc_sink() as sink:
        env = environment(
            OTEL_AUDIT_ENDPOINT=sink.address,
            OTEL_AUDIT_CLIENTS=str(clients),
            OTEL_AUDIT_TRUSTED_PROXIES="127.0.0.0/8,10.0.0.0/8",
            OTEL_TRACES_SAMPLER="always_off",
        )
        names = [n for n in COMMANDS if n not in INSTALLED]
        with (
            services(names, folder, env, sink=sink) as zero_code,
            services(INSTALLED, folder, env, sink=sink, instrument=False) as installed,
        ):
            yield {**zero_code, **installed}


def get_thing(one: Running, headers: dict[str, str]) -> dict[str, Any]:
    """The record of a successful call with `headers`."""
    if "grpc" in one.name:
        return one.record(lambda: one.rpc("Get", {k.lower(): v for k, v in headers.items()}))
    return one.record(lambda: one.request("GET", "/things/7", headers))


# --- who and from where ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [n for n in COMMANDS if n != "falcon-asgi"])
def test_a_call_is_one_record_that_says_all(name: str, running: dict[str, Running]) -> None:
    record = get_thing(running[name], {"X-API-Key": "web-key"})
    assert said(record, "client_id", "client_name", "client_auth") == {
        "client_id": "web",
        "client_name": "Web front end",
        "client_auth": "api_key",
    }
    assert said(record, "client_ip", "client_ip_source", "peer_ip") == {
        "client_ip": "127.0.0.1",
        "client_ip_source": "peer",
        "peer_ip": "127.0.0.1",
    }
    assert record["outcome"] == "success"
    assert record["duration_ns"] > 0
    if "grpc" in name:
        assert said(record, "method", "status_code", "action") == {
            "method": f"{SERVICE}/Get",
            "status_code": 0,
            "action": "Get",
        }
    else:
        assert said(record, "method", "route", "target", "status_code", "action") == {
            "method": "GET",
            "route": route_of(name, "/things/{thing_id}", thing_id="int"),
            "target": "/things/7",
            "status_code": 200,
            "action": "read",
        }


CREDENTIALS = {
    "jwt": ({"Authorization": f"Bearer {jwt(azp='batch', sub='ann')}"}, "batch", "ann"),
    "basic": ({"Authorization": basic("legacy", "secret")}, "legacy", None),
    "none": ({}, None, None),
}


@pytest.mark.parametrize("kind", CREDENTIALS)
@pytest.mark.parametrize("name", HTTP + RPC)
def test_every_kind_of_credential_names_the_caller(name: str, kind: str, running: dict[str, Running]) -> None:
    headers, client, user = CREDENTIALS[kind]
    record = get_thing(running[name], {**headers, **UNSAMPLED})
    assert said(record, "client_id", "user_id") == {"client_id": client, "user_id": user}
    assert record["client_auth"].startswith(kind)
    assert record["trace_id"].hex() == "0af7651916cd43dd8448eb211c80319c", "a caller cannot switch its audit off"


@pytest.mark.parametrize("name", [*HTTP, *RPC, "flask-within", "fastapi-within"])
def test_a_forwarded_address_counts_as_far_as_proxies_are_trusted(name: str, running: dict[str, Running]) -> None:
    one = running[name]
    forged = "198.51.100.1, 203.0.113.9, 10.0.0.5"
    record = get_thing(one, {"X-Forwarded-For": forged})
    assert said(record, "client_ip", "client_ip_source", "peer_ip") == {
        "client_ip": "203.0.113.9",
        "client_ip_source": "forwarded",
        "peer_ip": "127.0.0.1",
    }
    record = get_thing(one, {"X-Forwarded-For": "nonsense"})
    assert said(record, "client_ip", "client_ip_source", "peer_ip") == {
        "client_ip": "127.0.0.1",
        "client_ip_source": "untrusted",
        "peer_ip": "127.0.0.1",
    }


# --- what was answered -----------------------------------------------------------------------------------------------------
STATUSES = {
    "POST /things": (201, "success", "create"),
    "HEAD /things/7": (200, "success", "read"),
    "DELETE /things/7": (405, "failure", "delete"),
    "OPTIONS /things/7": (405, "failure", "options"),
    "GET /refused": (403, "denied", None),
    "GET /broken": (500, "error", None),
    "GET /nowhere": (404, "failure", None),
    "FROB /things/7": (405, "failure", "other"),
}
ODD = ("tornado", "FROB")  # the route's parameters are named after those of the method's handler, and there is none
ANSWERS_OTHERWISE = {
    ("flask", "OPTIONS /things/7"): (200, "success", "options"),
    ("falcon", "OPTIONS /things/7"): (200, "success", "options"),
    ("falcon", "FROB /things/7"): (400, "failure", "other"),
    ("pyramid", "DELETE /things/7"): (404, "failure", "delete"),
    ("pyramid", "OPTIONS /things/7"): (404, "failure", "options"),
    ("pyramid", "FROB /things/7"): (404, "failure", "other"),
}


@pytest.mark.parametrize("name", HTTP)
def test_the_record_says_what_was_answered(name: str, running: dict[str, Running]) -> None:
    one = running[name]
    for what, usual in STATUSES.items():
        method, path = what.split()
        if (name, method) == ("aiohttp", "FROB"):  # its parser knows no such method, and no application sees it
            continue
        status, outcome, action = ANSWERS_OTHERWISE.get((name, what), usual)
        answered, record = one.answer(method, path, {"X-API-Key": "web-key"})
        assert answered == status, what
        assert (record["status_code"], record["outcome"], record["client_id"]) == (status, outcome, "web"), what
        assert action in (None, record["action"]), what
        if path == "/nowhere" or (status == 405 and (name in ("flask", "aiohttp") or (name, method) == ODD)):
            assert "route" not in record, what
        elif path == "/things/7":
            assert record["route"] == route_of(name, "/things/{thing_id}", thing_id="int"), what
        else:
            assert record["route"] == route_of(name, path), what


RPC_STATUSES = {
    "Get": (0, "success"),
    "Refuse": (7, "denied"),
    "SetCode": (3, "failure"),
    "Break": (2, "error"),
    "Stream": (0, "success"),
    "BreakStream": (2, "error"),
    "Nothing": (12, "error"),
}


@pytest.mark.parametrize("name", RPC)
def test_the_record_says_what_status_a_grpc_call_had(name: str, running: dict[str, Running]) -> None:
    one = running[name]
    methods = RPC_STATUSES if name == "grpc-aio" else {**RPC_STATUSES, "RefuseWithStatus": (5, "failure")}
    for method, (status, outcome) in methods.items():
        answered, record = one.answer(method, headers={"x-api-key": "web-key"})
        assert answered == status, method
        assert (record["status_code"], record["outcome"]) == (status, outcome), method
        assert (record["client_id"], record["method"]) == ("web", f"{SERVICE}/{method}")


@pytest.mark.parametrize("name", RPC)
def test_a_grpc_method_that_does_not_exist_is_answered_as_without_audit(name: str, running: dict[str, Running]) -> None:
    details: list[Any] = []

    def call() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{running[name].port}") as channel:
            method: Any = channel.unary_unary(f"/{SERVICE}/No")
            try:
                method(b"", timeout=20)
            except grpc.RpcError as e:
                details.append(e.details())

    assert running[name].record(call)["status_code"] == 12
    assert details == ["Method not found!"], "what gRPC itself says"


def test_a_grpc_call_whose_caller_goes_away_is_recorded_as_cancelled(running: dict[str, Running]) -> None:
    one = running["grpc-aio"]

    def give_up() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{one.port}") as channel:
            method: Any = channel.unary_unary(f"/{SERVICE}/Hang")
            with pytest.raises(grpc.RpcError):
                method(b"", timeout=0.3)

    record = one.record(give_up)
    assert (record["status_code"], record["outcome"]) == (1, "failure")


def test_the_status_of_a_sink_and_of_a_timeout_is_what_the_framework_answers(running: dict[str, Running]) -> None:
    sunk = running["falcon"].record(lambda: running["falcon"].request("GET", "/sink/a"))
    assert (sunk["status_code"], sunk["outcome"]) == (200, "success")
    late = running["aiohttp"].record(lambda: running["aiohttp"].request("GET", "/late"))
    assert (late["status_code"], late["outcome"]) == (504, "error")


def test_falcon_for_asgi_is_audited_in_opentelemetrys_middleware(running: dict[str, Running]) -> None:
    record = get_thing(running["falcon-asgi"], {"X-API-Key": "web-key"})
    assert said(record, "client_id", "client_ip", "method", "target", "status_code", "outcome") == {
        "client_id": "web",
        "client_ip": "127.0.0.1",
        "method": "GET",
        "target": "/things/7",
        "status_code": 200,
        "outcome": "success",
    }


# --- applications within applications --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MOUNTED)
def test_the_route_of_a_mounted_application_is_whole(name: str, running: dict[str, Running]) -> None:
    one = running[name]
    record = one.record(lambda: one.request("GET", "/sub/items/3"))
    parameter = "thing_id" if name.startswith("django") else "item_id"
    kind = "" if name == "starlette" else "int"
    expected = route_of(name if kind else "fastapi", f"/sub/items/{{{parameter}}}", **{parameter: kind})
    assert (record["route"], record["status_code"]) == (expected, 200)


@pytest.mark.parametrize("name", ["fastapi", "starlette"])
def test_the_route_goes_through_any_number_of_mounts(name: str, running: dict[str, Running]) -> None:
    one = running[name]
    record = one.record(lambda: one.request("GET", "/sub/deep/here/leaves/4"))
    assert record["route"] == "/sub/deep/{place}/leaves/{leaf_id}"
    record = one.record(lambda: one.request("GET", "/sub/none"))
    assert (record["route"], record["status_code"]) == ("/sub", 404)


# --- streams and sockets ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["fastapi", "starlette", "aiohttp", "tornado", *RPC])
def test_the_duration_of_a_stream_is_that_of_the_whole(name: str, running: dict[str, Running]) -> None:
    one = running[name]
    record = one.record(lambda: one.rpc("Stream") if name in RPC else one.request("GET", "/stream"))
    assert record["duration_ns"] >= 200_000_000, "three chunks, a tenth of a second apart"


@pytest.mark.parametrize("name", ["flask", "django-wsgi", "django-asgi", "falcon", "pyramid"])
def test_a_stream_that_begins_after_its_span_is_recorded_all_the_same(name: str, running: dict[str, Running]) -> None:
    one = running[name]
    record = one.record(lambda: one.request("GET", "/stream", {"X-API-Key": "web-key"}))
    assert (record["status_code"], record["outcome"], record["client_id"]) == (200, "success", "web")


def _begin_and_leave(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: crm\r\nX-API-Key: web-key\r\n\r\n")
        client.recv(100)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, not a polite end


@pytest.mark.parametrize("name", ["fastapi", "starlette", "flask", "aiohttp", "tornado"])
def test_a_client_that_goes_away_has_its_call_recorded_as_far_as_it_went(
    name: str, running: dict[str, Running]
) -> None:
    one = running[name]
    record = one.record(lambda: _begin_and_leave(one.port))
    assert (record["client_id"], record["route"], record["status_code"]) == ("web", "/stream", 200)
    assert record["outcome"] == ("unknown" if name in ("aiohttp", "tornado") else "success")


async def _talk(url: str) -> None:
    key = {"X-API-Key": "web-key"}
    async with aiohttp.ClientSession() as session, session.ws_connect(url, headers=key) as socket:
        if url.endswith("/open"):
            await socket.send_str("hello")
            assert (await socket.receive()).data == "hello"
        else:
            await socket.receive()
            await socket.close(code=1000)  # whatever the service closed it with


def talk(port: int, room: str) -> None:
    with contextlib.suppress(aiohttp.WSServerHandshakeError):
        asyncio.run(asyncio.wait_for(_talk(f"ws://127.0.0.1:{port}/rooms/{room}"), 20))


@pytest.mark.parametrize("name", WEBSOCKETS)
def test_a_websocket_call_is_recorded_when_it_ends(name: str, running: dict[str, Running]) -> None:
    one = running[name]
    outcomes = {"open": (101, "success"), "broken": (101, "error"), "strict": (101, "denied")}
    if name in ("fastapi", "starlette"):
        outcomes |= {"closed": (403, "denied")}
    for room, (status, outcome) in outcomes.items():
        record = one.record(partial(talk, one.port, room))
        assert said(record, "client_id", "method", "route", "target", "outcome", "action") == {
            "client_id": "web",
            "method": "GET",
            "route": "/rooms/{room}",
            "target": f"/rooms/{room}",
            "outcome": outcome,
            "action": "connect",
        }
        assert record["status_code"] == status


# --- within a span of the application's own --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["flask-within", "fastapi-within"])
def test_a_span_of_the_applications_own_around_it_hides_no_call(name: str, running: dict[str, Running]) -> None:
    one = running[name]
    record = one.record(lambda: one.request("GET", "/broken", {"X-API-Key": "web-key"}))
    assert said(record, "client_id", "route", "status_code", "outcome") == {
        "client_id": "web",
        "route": "/broken",
        "status_code": 500,
        "outcome": "error",
    }


def test_with_a_provider_of_its_own_the_application_keeps_its_resource(running: dict[str, Running]) -> None:
    assert get_thing(running["install-flask"], {})["service_version"] == "7"


# --- a kill after the answer -----------------------------------------------------------------------------------------------
USUAL_CALLS = ["/things/7", "/refused", "/broken"]
LAST_CALLS = {
    "fastapi": ["/broken", "/refused", "/stream", "/things/7"],  # behind a middleware that streams whatever it gets
    "starlette": ["/things/7", "/refused", "/broken", "/stream"],
    "tornado": ["/things/7", "/refused", "/broken", "/stream"],
    "aiohttp": ["/things/7", "/refused", "/broken", "/stream?hang=1"],
    "grpc": ["Get", "Refuse", "Stream"],
    "grpc-aio": ["Get", "Stream", "Refuse"],  # `abort` answers at once
}
"""Calls that are answered, the last of which could be answered before its record is made."""


def _last_call(one: Running) -> None:
    paths = LAST_CALLS.get(one.name, USUAL_CALLS)
    if one.name in RPC:
        with grpc.insecure_channel(f"127.0.0.1:{one.port}") as channel:
            for method in paths:
                assert rpc(channel, method).value[0] == RPC_STATUSES[method][0]
    else:
        statuses = {"/refused": 403, "/broken": 500}
        assert [one.request("GET", path) for path in paths] == [statuses.get(path, 200) for path in paths]


def _call_and_kill(one: Running) -> None:
    _last_call(one)
    os.killpg(one.process.pid, signal.SIGKILL)
    one.process.wait(20)


@pytest.mark.parametrize("mode", ["async", "durable"])
def test_no_answered_call_is_lost_when_the_process_is_killed_with_its_answer(mode: str, tmp_path: Path) -> None:
    port = free_port()
    env = environment(OTEL_AUDIT_ENDPOINT=f"http://127.0.0.1:{port}", OTEL_AUDIT_MODE=mode)
    names = HTTP + RPC if mode == "async" else ["fastapi", "aiohttp", "tornado", "grpc-aio"]
    with services(names, tmp_path, env, before=("slowly.py",)) as running, ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(_call_and_kill, running.values()))
        counts = {name: len(LAST_CALLS.get(name, USUAL_CALLS)) for name in names}
    with grpc_sink(port) as sink:
        ship = (
            "import time, otel_audit\n"
            "otel_audit.install()\n"
            "from opentelemetry.sdk.trace import TracerProvider\n"
            "from opentelemetry.trace import SpanKind\n"
            "TracerProvider().get_tracer('t').start_span('GET /', kind=SpanKind.SERVER).end()\n"
            "time.sleep(60)\n"
        )
        shipping = subprocess.Popen(
            [sys.executable, "-c", ship],
            cwd=APPS,
            env={**env, "OTEL_SERVICE_NAME": "shipper", "OTEL_AUDIT_SPOOL_DIR": str(tmp_path / "spool")},
        )

        def found() -> dict[str, int]:
            served = [s.resource["service.name"] for s in list(sink.spans)]
            return {name: served.count(name) for name in counts}

        try:
            wait_until(lambda: sum(found().values()) >= sum(counts.values()), 20)
        finally:
            shipping.kill()
            shipping.wait()
            assert found() == counts


# --- what is private to a package may be gone ------------------------------------------------------------------------------
def test_a_package_that_changed_inside_is_named_once_and_the_rest_is_audited(tmp_path: Path) -> None:
    program = (
        "import logging, sys, types; logging.basicConfig(format='%(message)s')\n"
        "from otel_audit.capture._hooks import when_imported\n"
        "from otel_audit.capture import _grpc\n"
        "from functools import partial\n"
        "name = 'opentelemetry.instrumentation.grpc._server'\n"
        "sys.modules[name] = types.ModuleType(name)\n"
        "when_imported(name, 'no address', partial(_grpc.audit_rpc_calls, None, None))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stderr.count("adapt opentelemetry.instrumentation.grpc._server to otel-audit") == 1
    assert "no address. Install versions" in done.stderr


def test_a_manual_service_needs_no_distribution(running: dict[str, Running]) -> None:
    """`opentelemetry-distro` does its work under `opentelemetry-instrument` only; these were started without."""
    command = Path(f"/proc/{running['install-fastapi'].process.pid}/cmdline").read_bytes()
    assert b"opentelemetry-instrument" not in command
