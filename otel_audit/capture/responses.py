"""Under ASGI, a response's last bytes leave only when the call's record is spooled.

OpenTelemetry's ASGI middleware sends a message first and ends the span afterwards: a process that is killed in between
has answered a call that nobody recorded. Here each message goes out after the middleware has done its bookkeeping for
it; with the last one that is the end of the span, and with it the record. In modes durable and fail-closed the record is
synced, off the event loop, before the last message goes. WSGI instrumentations end the span before the server writes.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from otel_audit.capture.processor import Calls

__all__ = ["hold_asgi_responses"]

_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]


def hold_asgi_responses(calls: Calls) -> None:
    """Change OpenTelemetry's ASGI middleware, now or when it is imported.

    Args:
        calls: tells which calls are to be synced.
    """
    import wrapt

    def hold(module: Any) -> None:
        original = module.OpenTelemetryMiddleware._get_otel_send  # noqa: SLF001 - no hook exists for this

        @functools.wraps(original)
        def get_send(self: Any, server_span: Any, name: str, scope: Any, send: _Send, *args: Any, **more: Any) -> Any:
            if not server_span.is_recording():
                return original(self, server_span, name, scope, send, *args, **more)
            held: list[_Message] = []

            async def hold_back(message: _Message) -> None:
                held.append(message)

            account = original(self, server_span, name, scope, hold_back, *args, **more)
            call = calls.hold(server_span)

            async def audited_send(message: _Message) -> None:
                try:
                    await account(message)
                finally:
                    if call is not None and call.sync_wanted:
                        call.sync_wanted = False
                        await asyncio.get_running_loop().run_in_executor(None, calls.recorder.sync)
                    while held:
                        await send(held.pop(0))

            return audited_send

        module.OpenTelemetryMiddleware._get_otel_send = get_send  # noqa: SLF001

    wrapt.register_post_import_hook(hold, "opentelemetry.instrumentation.asgi")
