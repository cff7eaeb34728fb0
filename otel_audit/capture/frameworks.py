"""What is changed in instrumentations and frameworks, and when: after each one's import, so that nothing is imported early.

Most of it is private to the package it is in, and may be absent in another version. Then a warning names the gap and what
to do, and everything else is audited.
"""

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context, attach, get_current
from opentelemetry.propagators.textmap import TextMapPropagator

from otel_audit.capture import _aiohttp, _falcon, _grpc, _starlette, _tornado
from otel_audit.capture._hooks import when_imported
from otel_audit.capture.call import call_in, current_call
from otel_audit.capture.processor import Calls
from otel_audit.capture.responses import hold_asgi_responses

__all__ = ["adapt_frameworks"]

_log = logging.getLogger("otel_audit.capture")

_INSTRUMENTATION: Final = "opentelemetry.instrumentation."
_UTILS: Final = _INSTRUMENTATION + "utils"
_START: Final = "_start_internal_or_server_span"

_Change = Callable[[Any], None]


def adapt_frameworks(calls: Calls, propagator: TextMapPropagator) -> None:
    """Have each framework's calls audited as far as it and its instrumentation allow.

    Args:
        calls: the calls.
        propagator: puts the `Call` of a carrier into a context.
    """

    def extract(carrier: object) -> Context:
        return propagator.extract(carrier, get_current())

    changes: tuple[tuple[str, str, _Change], ...] = (
        (
            _INSTRUMENTATION + "asgi",
            "a process that is killed may lose an ASGI call that was answered",
            functools.partial(hold_asgi_responses, calls),
        ),
        ("starlette.routing", "calls of mounted applications have the mount as their route", _starlette.note_mounts),
        (
            _INSTRUMENTATION + "grpc._server",
            "gRPC calls are recorded without the caller's address and certificate",
            functools.partial(_grpc.audit_rpc_calls, calls, extract),
        ),
        (
            _INSTRUMENTATION + "grpc._aio_server",
            "a process that is killed may lose an aborted gRPC call",
            functools.partial(_grpc.audit_aio_calls, calls),
        ),
        (
            _INSTRUMENTATION + "aiohttp_server",
            "annotations and sub-applications of aiohttp are not recorded well",
            functools.partial(_aiohttp.audit_aiohttp, calls),
        ),
        (
            "aiohttp.web_response",
            "a process that is killed may lose an aiohttp call whose handler ended its response itself",
            functools.partial(_aiohttp.audit_begun_responses, calls),
        ),
        (
            _INSTRUMENTATION + "tornado",
            "Tornado calls are recorded without the caller, the route, and after their answer",
            functools.partial(_tornado.audit_tornado, calls),
        ),
        (
            _INSTRUMENTATION + "falcon",
            "calls that Falcon sinks answer are recorded with status 404",
            functools.partial(_falcon.audit_falcon, calls),
        ),
        (
            _UTILS,
            "calls that arrive within a span of the application's own are not recorded",
            functools.partial(_audit_internal_spans, extract),
        ),
    )
    for module, gap, change in changes:
        when_imported(module, gap, change)


def _audit_internal_spans(extract: Callable[[object], Context], utils: Any) -> None:
    """Audit also a call that arrives while a span of the application's own is current.

    Instrumentations then make a span of kind INTERNAL and do not read the request at all. That span stays as it is; it is
    recorded as a served call, with the caller named, unless it is part of a call that is being audited already.
    """
    original = getattr(utils, _START)

    @functools.wraps(original)
    def start(
        tracer: Any, span_name: Any, start_time: Any, context_carrier: Any, *args: Any, **more: Any
    ) -> tuple[Any, Any]:
        if trace.get_current_span() is trace.INVALID_SPAN:
            traced: tuple[Any, Any] = original(tracer, span_name, start_time, context_carrier, *args, **more)
            return traced
        around = current_call()
        token = None
        if around is None or around.recorded:
            context = extract(context_carrier)
            call = call_in(context)
            if call is not None and call is not around:
                call.internal = True
                token = attach(context)
        span, inner = original(tracer, span_name, start_time, context_carrier, *args, **more)
        return span, token if inner is None else inner

    setattr(utils, _START, start)
    for name, module in list(sys.modules.items()):  # those that were imported before have the original
        if name.startswith(_INSTRUMENTATION) and getattr(module, _START, None) is original:
            setattr(module, _START, start)
