"""A Flask service that knows nothing of auditing."""

from flask import Flask, abort

app = Flask(__name__)


@app.get("/things/<int:thing_id>")
def read_thing(thing_id: int) -> dict[str, int]:
    if thing_id == 404:
        abort(404)
    return {"id": thing_id}


@app.get("/broken")
def broken() -> str:
    raise RuntimeError("out of order")
