"""gRPC, sync and aio: who calls, what the caller was answered, and calls of methods that do not exist.

OpenTelemetry's interceptor shows its propagator the metadata without the connection, says status 0 of a call that ended in
an exception or by `abort_with_status`, and knows nothing of methods that nobody serves. The status that counts is the one
that gRPC itself has when the handler is done.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace import ReadableSpan

from otel_audit import names
from otel_audit.capture.carriers import RpcCarrier
from otel_audit.capture.processor import Calls

__all__ = ["audit_aio_calls", "audit_rpc_calls"]

_STATUS: Final = names.RPC_STATUS[1]
_OK: Final = 0
_CANCELLED: Final = 1
_UNKNOWN: Final = 2


class _Status:
    """The status of a call, put on its record.

    Args:
        code: the status; None while it is not known.
    """

    __slots__ = ("code",)

    def __init__(self) -> None:
        self.code: int | None = None

    def __call__(self, said: dict[str, Any], span: ReadableSpan) -> None:  # noqa: ARG002 - as `Call.correct` is called
        if self.code is not None:
            said[_STATUS] = self.code


def audit_rpc_calls(calls: Calls, extract: Callable[[object], Context], module: Any) -> None:
    """Change OpenTelemetry's server interceptor, whose parts its aio twin inherits.

    Args:
        calls: the calls.
        extract: gives the current context with the `Call` of a carrier.
        module: `opentelemetry.instrumentation.grpc._server`.
    """
    interceptor = module.OpenTelemetryServerInterceptor
    _set_remote_context(interceptor, extract)
    _note_status(interceptor, calls)
    _serve_unknown_methods(module)


def _set_remote_context(interceptor: Any, extract: Callable[[object], Context]) -> None:
    original = interceptor._set_remote_context  # noqa: SLF001 - no hook exists for this

    @functools.wraps(original)
    @contextmanager
    def set_remote_context(self: Any, servicer_context: Any) -> Iterator[None]:
        with original(self, servicer_context):
            token = attach(extract(RpcCarrier(servicer_context)))
            try:
                yield
            finally:
                detach(token)

    interceptor._set_remote_context = set_remote_context  # noqa: SLF001


def _note_status(interceptor: Any, calls: Calls) -> None:
    original = interceptor._start_span  # noqa: SLF001

    @functools.wraps(original)
    @contextmanager
    def start_span(self: Any, details: Any, context: Any, *args: Any, **more: Any) -> Iterator[Any]:
        with original(self, details, context, *args, **more) as span:
            call = calls.of(span)
            if call is None:
                yield span
                return
            status = call.correct = _Status()
            if isinstance(call.carrier, RpcCarrier):
                call.carrier.method = details.method
            try:
                yield span
            except Exception:
                status.code = _code_of(context) or _UNKNOWN
                raise
            except BaseException:  # the caller has gone, or the server stops
                status.code = _code_of(context) or _CANCELLED
                raise
            else:
                status.code = _code_of(context)

    interceptor._start_span = start_span  # noqa: SLF001


def _code_of(context: Any) -> int:
    """The status that the handler has set, by whatever means; 0 when it has set none."""
    try:
        code = context.code()
    except Exception:  # another library's context, or a gRPC that does not tell
        return _OK
    value = getattr(code, "value", code)
    number = value[0] if isinstance(value, tuple) else value
    return number if isinstance(number, int) else _OK


def _serve_unknown_methods(module: Any) -> None:
    """Have the interceptor see calls of methods that nobody serves; they are answered as before.

    A handler that refuses each call stands where there is none: gRPC itself answers such a call before anyone sees it.
    """
    original = module._wrap_rpc_behavior  # noqa: SLF001

    @functools.wraps(original)
    def wrap_rpc_behavior(handler: Any, continuation: Any) -> Any:
        return original(handler if handler is not None else _refusing_handler(), continuation)

    module._wrap_rpc_behavior = wrap_rpc_behavior  # noqa: SLF001


def _refusing_handler() -> Any:
    import grpc

    def refuse(request: object, context: Any) -> None:  # noqa: ARG001 - a handler's signature
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    return grpc.stream_unary_rpc_method_handler(refuse)


def audit_aio_calls(calls: Calls, module: Any) -> None:
    """Change OpenTelemetry's aio interceptor: `abort` answers the caller at once, so the call is recorded before.

    Args:
        calls: the calls.
        module: `opentelemetry.instrumentation.grpc._aio_server`.
    """
    wrapped = module._OpenTelemetryAioServicerContext  # noqa: SLF001
    original = wrapped.abort

    @functools.wraps(original)
    async def abort(self: Any, code: Any, *args: Any, **more: Any) -> Any:
        call = calls.of(self._self_active_span)
        if call is not None:
            if isinstance(call.correct, _Status):
                call.correct.code = code.value[0] or _UNKNOWN
            call.held = True
            calls.answered(call)
            await calls.sync_held(call)
        return await original(self, code, *args, **more)

    wrapped.abort = abort
    _serve_unknown_aio_methods(module)


def _serve_unknown_aio_methods(module: Any) -> None:
    import grpc

    original = module._wrap_rpc_behavior  # noqa: SLF001

    async def refuse(request: object, context: Any) -> None:  # noqa: ARG001 - a handler's signature
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    @functools.wraps(original)
    def wrap_rpc_behavior(handler: Any, continuation: Any) -> Any:
        return original(handler or grpc.stream_unary_rpc_method_handler(refuse), continuation)

    module._wrap_rpc_behavior = wrap_rpc_behavior  # noqa: SLF001
