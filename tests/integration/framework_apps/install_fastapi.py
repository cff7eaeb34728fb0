"""A FastAPI service that installs auditing itself, as docs/frameworks.md shows it."""

import sys

import otel_audit

otel_audit.install()

import uvicorn
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

app = FastAPI()
FastAPIInstrumentor.instrument_app(app)


@app.get("/things/{thing_id}")
async def read_thing(thing_id: int) -> dict[str, int]:
    return {"id": thing_id}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]))
