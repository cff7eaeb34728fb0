"""An ASGI service that knows nothing of auditing."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, StreamingResponse
from opentelemetry import trace

LOADED = uuid.uuid4().hex
app = FastAPI(default_response_class=PlainTextResponse)


def started(n: int) -> None:
    (Path(os.environ["STARTED"]) / str(n)).touch()


@app.get("/call/{n}")
async def call(n: int) -> str:
    return f"{os.getpid()} {LOADED}"


@app.get("/late/{n}")
async def late(n: int) -> str:
    trace.get_current_span().set_attribute("app.late", n)
    return "late"


@app.get("/broken/{n}")
async def broken(n: int) -> str:
    raise RuntimeError(f"out of order {n}")


@app.get("/stream/{n}")
async def stream(n: int) -> StreamingResponse:
    async def parts() -> AsyncIterator[str]:
        for part in range(5):
            await asyncio.sleep(0.01)
            yield f"{part} {n}\n"

    return StreamingResponse(parts())


@app.get("/slow/{n}")
async def slow(n: int) -> str:
    started(n)
    await asyncio.sleep(0.2)
    return "slow"


@app.get("/endless/{n}")
async def endless(n: int) -> StreamingResponse:
    async def parts() -> AsyncIterator[str]:
        started(n)
        for _ in range(300):
            yield "x" * 65536
            await asyncio.sleep(0.01)

    return StreamingResponse(parts())


@app.get("/exit/{n}")
async def leave(n: int) -> str:
    os._exit(n)
