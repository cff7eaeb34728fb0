"""A FastAPI service that knows nothing of auditing."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.responses import StreamingResponse

app = FastAPI()
sub = FastAPI()
deep = FastAPI()
leaves = APIRouter(prefix="/leaves")


@app.middleware("http")
async def pass_on(request: Request, call_next):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    return await call_next(request)


@app.get("/things/{thing_id}")
async def read_thing(thing_id: int) -> dict[str, int]:
    return {"id": thing_id}


@app.head("/things/{thing_id}")
async def head_thing(thing_id: int) -> Response:
    return Response()


@app.post("/things")
async def create_thing() -> Response:
    return Response(status_code=201)


@app.get("/refused")
async def refused() -> None:
    raise HTTPException(403)


@app.get("/broken")
async def broken() -> None:
    raise RuntimeError("out of order")


async def _chunks() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield b"chunk"
        await asyncio.sleep(0.1)


@app.get("/stream")
async def stream() -> StreamingResponse:
    return StreamingResponse(_chunks())


@sub.get("/items/{item_id}")
async def read_item(item_id: int) -> dict[str, int]:
    return {"id": item_id}


@leaves.get("/{leaf_id}")
async def read_leaf(leaf_id: int) -> dict[str, int]:
    return {"id": leaf_id}


@app.websocket("/rooms/{room}")
async def room(websocket: WebSocket, room: str) -> None:
    if room == "closed":
        await websocket.close(1008)
        return
    await websocket.accept()
    if room == "broken":
        raise RuntimeError("out of order")
    if room == "strict":
        await websocket.close(1008)
        return
    while True:
        await websocket.send_text(await websocket.receive_text())


deep.include_router(leaves)
sub.mount("/deep/{place}", deep)
app.mount("/sub", sub)
