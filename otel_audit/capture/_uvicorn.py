"""uvicorn: the socket's peer behind its `--proxy-headers`, the moment before it serves, and SIGTERM in its servers."""

import functools
import logging
from collections.abc import Callable
from typing import Any

from otel_audit.capture._hooks import when_imported
from otel_audit.capture.carriers import CURRENT_SCOPE, PEER_KEY

__all__ = ["watch_peers", "watch_servers"]

_log = logging.getLogger("otel_audit.capture")


def watch_peers(on_request: Callable[[], None], on_startup: Callable[[], None]) -> None:
    """Have uvicorn keep the socket's peer, which its `--proxy-headers` (on by default) replaces by a header's word.

    Args:
        on_request: called before the application is; must not raise. FastAPI's own telemetry looks for a tracer provider
            before it touches the request.
        on_startup: called when the application is about to start.
    """

    def watch(module: Any) -> None:
        original = module.ProxyHeadersMiddleware.__call__

        @functools.wraps(original)
        async def call(self: Any, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                scope.setdefault(PEER_KEY, scope.get("client"))
                CURRENT_SCOPE.set(scope)  # uvicorn runs each request in a context of its own
                on_request()
            else:
                try:
                    on_startup()
                except Exception:
                    _log.exception("record the start of the service: a fault in otel-audit; its calls are recorded")
            await original(self, scope, receive, send)

        module.ProxyHeadersMiddleware.__call__ = call

    gap = "start uvicorn with --no-proxy-headers, or its forwarded addresses look like peers"
    when_imported("uvicorn.middleware.proxy_headers", gap, watch)


def watch_servers(catch_sigterm: Callable[[], None]) -> None:
    """Have SIGTERM caught again when a uvicorn server begins: gunicorn's workers reset all handlers before that.

    Args:
        catch_sigterm: called in the thread that runs the server, before it takes over the signals.
    """

    def watch(module: Any) -> None:
        original = module.Server.serve

        @functools.wraps(original)
        async def serve(self: Any, *args: Any, **kwargs: Any) -> Any:
            catch_sigterm()
            return await original(self, *args, **kwargs)

        module.Server.serve = serve

    gap = "under gunicorn, SIGTERM leaves what waits to the next process"
    when_imported("uvicorn.server", gap, watch)
