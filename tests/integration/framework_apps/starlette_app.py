"""A Starlette service that knows nothing of auditing."""

import asyncio
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket


async def read_thing(request: Request) -> Response:
    return JSONResponse({"id": request.path_params["thing_id"]})


async def create_thing(request: Request) -> Response:
    return Response(status_code=201)


async def refused(request: Request) -> Response:
    raise HTTPException(403)


async def broken(request: Request) -> Response:
    raise RuntimeError("out of order")


async def _chunks() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield b"chunk"
        await asyncio.sleep(0.1)


async def stream(request: Request) -> Response:
    return StreamingResponse(_chunks())


async def room(websocket: WebSocket) -> None:
    name = websocket.path_params["room"]
    if name == "closed":
        await websocket.close(1008)
        return
    await websocket.accept()
    if name == "broken":
        raise RuntimeError("out of order")
    if name == "strict":
        await websocket.close(1008)
        return
    while True:
        await websocket.send_text(await websocket.receive_text())


things = [Route("/things/{thing_id:int}", read_thing), Route("/things", create_thing, methods=["POST"])]
app = Starlette(
    routes=[
        *things,
        Route("/refused", refused),
        Route("/broken", broken),
        Route("/stream", stream),
        WebSocketRoute("/rooms/{room}", room),
        Mount(
            "/sub",
            routes=[
                Route("/items/{item_id}", lambda request: JSONResponse({})),
                Mount("/deep/{place}", routes=[Route("/leaves/{leaf_id}", lambda request: JSONResponse({}))]),
            ],
        ),
    ]
)
