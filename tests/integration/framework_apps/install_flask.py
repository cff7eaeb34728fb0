"""A Flask service that installs auditing itself, with a tracer provider of its own."""

import sys

from flask import Flask
from opentelemetry import trace
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

import otel_audit

trace.set_tracer_provider(TracerProvider(resource=Resource.create({"service.version": "7"})))
otel_audit.install()

app = Flask(__name__)
FlaskInstrumentor().instrument_app(app)


@app.get("/things/<int:thing_id>")
def read_thing(thing_id: int) -> dict[str, int]:
    return {"id": thing_id}


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]))
