"""A FastAPI service with logfire, which makes its tracer provider here: long after capture was installed."""

import logfire
from fastapi import FastAPI

app = FastAPI()
logfire.configure(send_to_logfire=False, console=False)


@app.get("/things/{thing_id}")
def read_thing(thing_id: int) -> dict[str, int]:
    return {"id": thing_id}


logfire.instrument_fastapi(app)
