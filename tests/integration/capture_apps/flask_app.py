"""A Flask service that knows nothing of auditing."""

import os
import time
from pathlib import Path

from flask import Flask, abort

app = Flask(__name__)


@app.get("/things/<int:thing_id>")
def read_thing(thing_id: int) -> dict[str, int]:
    if thing_id == 404:
        abort(404)
    return {"id": thing_id}


@app.get("/hang")
def hang() -> str:
    Path(os.environ["STARTED"]).touch()
    time.sleep(3600)
    return "never"


@app.get("/done")
def done() -> str:
    Path(os.environ["STARTED"]).touch()
    return "done"


@app.get("/slow")
def slow() -> str:
    Path(os.environ["STARTED"]).touch()
    time.sleep(0.1)
    return "done"


@app.get("/broken")
def broken() -> str:
    raise RuntimeError("out of order")
