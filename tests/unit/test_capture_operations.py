"""A handler's name is found in whatever the framework hands on, and never at the price of the call."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from otel_audit.capture._hooks import when_imported
from otel_audit.capture.carriers import CURRENT_SCOPE
from otel_audit.capture.operations import operation_of

HEADERS = [(b"host", b"h")]


def endpoint() -> None:
    """A handler."""


class Endpoint:
    """A handler that is an object."""


def of(**attributes: Any) -> Any:
    return SimpleNamespace(**attributes)


class Broken:
    @property
    def resolver_match(self) -> object:
        raise RuntimeError("changed")


@pytest.mark.parametrize(
    ("request_", "said", "operation"),
    [
        ({"type": "http", "route": of(operation_id="readContact", name="read")}, {}, "readContact"),
        ({"type": "http", "route": of(operation_id=None, name="read")}, {}, "read"),
        ({"type": "http", "route": of(path="/"), "endpoint": endpoint}, {}, "endpoint"),
        ({"type": "http", "endpoint": Endpoint()}, {}, "Endpoint"),
        ({"type": "http"}, {}, None),
        ({"werkzeug.request": of(endpoint="crm.read")}, {}, "crm.read"),
        ({"werkzeug.request": of(endpoint=None)}, {}, None),
        (of(resolver_match=of(view_name="crm:read")), {}, "crm:read"),
        (of(resolver_match=None), {}, None),
        (of(match_info=of(http_exception=None, handler=endpoint, route=of(resource=of(name=None)))), {}, "endpoint"),
        (of(match_info=of(http_exception=None, handler=endpoint, route=of(resource=of(name="n")))), {}, "n"),
        (of(match_info=of(http_exception=ValueError(), handler=endpoint, route=of(resource=None))), {}, None),
        (of(matched_route=of(name="contact"), view_name=""), {}, "contact"),
        (of(matched_route=None, view_name="list"), {}, "list"),
        (of(matched_route=None, view_name=""), {}, None),
        ({"REQUEST_METHOD": "GET"}, {"falcon.resource": "Contact", "http.method": "GET"}, "Contact.on_get"),
        (None, {"tornado.handler": "crm.web.Contact", "http.request.method": "PUT"}, "Contact.put"),
        (None, {}, None),
        ({"route": of(operation_id="x" * 1000)}, {}, "x" * 256),
        ({"route": of(operation_id=5)}, {}, None),
        (Broken(), {}, None),
    ],
)
def test_the_operation_is_the_frameworks_name_of_the_handler(
    request_: object, said: dict[str, Any], operation: str | None
) -> None:
    assert operation_of(request_, said) == operation


def test_fastapis_own_telemetry_hands_on_headers_and_the_scope_they_belong_to_is_found() -> None:
    scope = {"type": "http", "headers": HEADERS, "route": of(operation_id="readContact")}
    assert operation_of(of(raw=HEADERS), {}) is None
    token = CURRENT_SCOPE.set(scope)
    try:
        assert operation_of(of(raw=HEADERS), {}) == "readContact"
        assert operation_of(of(raw=[(b"host", b"other")]), {}) is None
    finally:
        CURRENT_SCOPE.reset(token)


def test_an_instrumentation_that_has_changed_is_imported_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def change(module: Any) -> None:
        raise AttributeError("no such thing in it")

    monkeypatch.setitem(sys.modules, "changed_instrumentation", ModuleType("changed_instrumentation"))
    when_imported("changed_instrumentation", "its calls are recorded without audit.operation", change)
    assert "no such thing in it; its calls are recorded without audit.operation" in caplog.text
