"""An aiohttp service that knows nothing of auditing."""

import asyncio
import sys

from aiohttp import web

routes = web.RouteTableDef()


@routes.get("/things/{thing_id}")
async def read_thing(request: web.Request) -> web.Response:
    return web.json_response({"id": request.match_info["thing_id"]})


@routes.post("/things")
async def create_thing(request: web.Request) -> web.Response:
    return web.Response(status=201)


@routes.get("/refused")
async def refused(request: web.Request) -> web.Response:
    raise web.HTTPForbidden


@routes.get("/broken")
async def broken(request: web.Request) -> web.Response:
    raise RuntimeError("out of order")


@routes.get("/late")
async def late(request: web.Request) -> web.Response:
    raise TimeoutError


@routes.get("/stream")
async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(3):
        await response.write(b"chunk")
        await asyncio.sleep(0.1)
    await response.write_eof()
    await asyncio.sleep(3600 if "hang" in request.query else 0)
    return response


@routes.get("/rooms/{room}")
async def room(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    if request.match_info["room"] == "broken":
        raise RuntimeError("out of order")
    if request.match_info["room"] == "strict":
        await socket.close(code=4403)
    async for message in socket:
        await socket.send_str(message.data)
    return socket


async def read_item(request: web.Request) -> web.Response:
    return web.json_response({})


def make() -> web.Application:
    app = web.Application()
    app.add_routes(routes)
    sub = web.Application()
    sub.router.add_get("/items/{item_id}", read_item)
    app.add_subapp("/sub", sub)
    return app


if __name__ == "__main__":
    web.run_app(make(), host="127.0.0.1", port=int(sys.argv[1]), print=None)
