"""Starlette, Falcon and Pyramid services that install auditing themselves; one is made by the name in `SERVICE`."""

import importlib
import os

import otel_audit

otel_audit.install()

from opentelemetry.instrumentation.falcon import FalconInstrumentor
from opentelemetry.instrumentation.pyramid import PyramidInstrumentor
from opentelemetry.instrumentation.starlette import StarletteInstrumentor

for instrumentor in (FalconInstrumentor(), PyramidInstrumentor(), StarletteInstrumentor()):
    instrumentor.instrument()

app = importlib.import_module(os.environ["SERVICE"]).app
