"""What a record says although its span does not: whole routes, the status after an exception, how a WebSocket call ended."""

import types
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

from otel_audit.capture.call import Call
from otel_audit.capture.corrections import INNER_KEY, MOUNT_KEY, close_outcome, correct_http, set_status

TRACER = TracerProvider().get_tracer("t")


def corrected(carrier: Any, said: dict[str, Any], *, exception: bool = False) -> dict[str, Any]:
    span = TRACER.start_span("GET /", kind=SpanKind.SERVER)
    if exception:
        span.record_exception(RuntimeError("out of order"))
    correct_http(said, Call({}, carrier), span)  # type: ignore[arg-type]  # of the SDK
    return said


ITEM = types.SimpleNamespace(path="/items/{id}")
MOUNT = types.SimpleNamespace(path="/deep", routes=[])


@pytest.mark.parametrize(
    ("scope", "route"),
    [
        ({MOUNT_KEY: "/sub", "route": ITEM}, "/sub/items/{id}"),
        ({MOUNT_KEY: "/sub", "route": ITEM, INNER_KEY: ("/sub", "/v1/items/{id}")}, "/sub/v1/items/{id}"),
        ({MOUNT_KEY: "/sub/deep", "route": ITEM, INNER_KEY: ("/sub", "/deep")}, "/sub/deep/items/{id}"),
        ({MOUNT_KEY: "/sub", "route": MOUNT}, "/sub"),
        ({MOUNT_KEY: "/sub"}, "/sub"),
        ({MOUNT_KEY: ""}, "/"),
        ({}, "/sub"),
        ({"SCRIPT_NAME": "/crm"}, "/crm/sub"),
        ({"SCRIPT_NAME": "/crm/"}, "/crm/sub"),
        ({"SCRIPT_NAME": ""}, "/sub"),
    ],
)
def test_the_route_is_whole(scope: dict[str, Any], route: str) -> None:
    assert corrected(scope, {"http.route": "/sub"}) == {"http.route": route}


def test_django_writes_routes_without_their_first_slash() -> None:
    assert corrected({"SCRIPT_NAME": "/crm"}, {"http.route": "things"}) == {"http.route": "/crm/things"}


def test_no_route_is_made_up() -> None:
    assert corrected({"SCRIPT_NAME": "/crm"}, {}) == {}
    assert corrected(object(), {"http.route": ""}) == {}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"http.method": "GET"}, {"http.method": "GET", "http.status_code": 500}),
        ({"http.request.method": "GET"}, {"http.request.method": "GET", "http.response.status_code": 500}),
        ({"http.method": "GET", "http.status_code": 404}, {"http.method": "GET", "http.status_code": 404}),
        ({"rpc.method": "Get"}, {"rpc.method": "Get"}),
    ],
)
def test_an_exception_without_a_status_is_answered_500(said: dict[str, Any], expected: dict[str, Any]) -> None:
    assert corrected(None, said, exception=True) == expected
    without = {k: v for k, v in said.items() if "status" not in k}
    assert corrected(None, dict(without)) == without


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, {"http.response.status_code": 101}),
        ({"http.status_code": 200}, {"http.status_code": 101}),
        ({"http.response.status_code": 200}, {"http.response.status_code": 101}),
        (
            {"http.status_code": 200, "http.response.status_code": 200},
            {"http.status_code": 101, "http.response.status_code": 101},
        ),
    ],
)
def test_a_status_is_said_in_the_conventions_of_the_span(said: dict[str, Any], expected: dict[str, Any]) -> None:
    set_status(said, 101)
    assert said == expected


@pytest.mark.parametrize(
    ("code", "by_client", "outcome"),
    [
        (None, True, "success"),
        (1000, True, "success"),
        (1001, True, "success"),
        (1005, False, "success"),
        (1006, True, "unknown"),
        (1006, False, "unknown"),
        (1008, False, "denied"),
        (1008, True, "failure"),
        (4403, False, "denied"),
        (1011, False, "error"),
        (4000, False, "failure"),
    ],
)
def test_the_outcome_of_a_websocket_call(code: int | None, by_client: bool, outcome: str) -> None:
    assert close_outcome(code, by_client=by_client) == outcome
