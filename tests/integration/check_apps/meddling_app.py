"""A FastAPI service that replaces what capture has installed."""

import os

from fastapi import FastAPI
from opentelemetry import propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

app = FastAPI()
wish = os.environ["MEDDLE"]
if wish == "sampler":
    trace.get_tracer_provider().sampler = ALWAYS_OFF  # type: ignore[attr-defined]
elif wish == "propagator":
    theirs: TextMapPropagator = TraceContextTextMapPropagator()
    propagate.set_global_textmap(theirs)
elif wish == "propagator-behind-our-back":
    propagate._HTTP_TEXT_FORMAT = TraceContextTextMapPropagator()


@app.get("/things/{thing_id}")
def read_thing(thing_id: int) -> dict[str, int]:
    return {"id": thing_id}
