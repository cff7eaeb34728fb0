"""A FastAPI service that knows nothing of auditing."""

import asyncio

from fastapi import FastAPI, HTTPException

app = FastAPI()


@app.get("/things/{thing_id}")
async def read_thing(thing_id: int) -> dict[str, int]:
    if thing_id == 404:
        raise HTTPException(404)
    return {"id": thing_id}


@app.get("/broken")
async def broken() -> None:
    raise RuntimeError("out of order")


@app.get("/slow")
async def slow() -> str:
    await asyncio.sleep(0.5)
    return "done"
