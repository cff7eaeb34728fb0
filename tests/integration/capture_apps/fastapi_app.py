"""A FastAPI service that knows nothing of auditing."""

import asyncio
import os
from pathlib import Path

from fastapi import FastAPI, HTTPException

app = FastAPI()


def started() -> None:
    Path(os.environ["STARTED"]).touch()


@app.get("/things/{thing_id}")
async def read_thing(thing_id: int) -> dict[str, int]:
    if thing_id == 404:
        raise HTTPException(404)
    return {"id": thing_id}


@app.get("/broken")
async def broken() -> None:
    raise RuntimeError("out of order")


@app.get("/hang")
async def hang() -> None:
    started()
    await asyncio.sleep(3600)


@app.get("/done")
async def done() -> str:
    started()
    return "done"


@app.get("/slow")
async def slow() -> str:
    await asyncio.sleep(0.5)
    return "done"
