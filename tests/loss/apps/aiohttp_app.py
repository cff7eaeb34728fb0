"""An aiohttp service that knows nothing of auditing; its argument is the port."""

import asyncio
import os
import sys
import uuid
from pathlib import Path

from aiohttp import web
from opentelemetry import trace

LOADED = uuid.uuid4().hex


def started(request: web.Request) -> None:
    (Path(os.environ["STARTED"]) / request.match_info["n"]).touch()


async def call(request: web.Request) -> web.Response:
    return web.Response(text=f"{os.getpid()} {LOADED}")


async def late(request: web.Request) -> web.Response:
    trace.get_current_span().set_attribute("app.late", int(request.match_info["n"]))
    return web.Response(text="late")


async def broken(request: web.Request) -> web.Response:
    raise RuntimeError(f"out of order {request.match_info['n']}")


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for part in range(5):
        await asyncio.sleep(0.01)
        await response.write(f"{part}\n".encode())
    await response.write_eof()
    return response


async def slow(request: web.Request) -> web.Response:
    started(request)
    await asyncio.sleep(0.2)
    return web.Response(text="slow")


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    started(request)
    for _ in range(300):
        await response.write(b"x" * 65536)
        await asyncio.sleep(0.01)
    return response


async def leave(request: web.Request) -> web.Response:
    os._exit(int(request.match_info["n"]))


def main() -> None:
    app = web.Application()
    for handler in (call, late, broken, stream, slow, endless):
        app.router.add_get(f"/{handler.__name__}/{{n}}", handler)
    app.router.add_get("/exit/{n}", leave)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]))


if __name__ == "__main__":
    main()
