"""Calls the examples of docs/annotate.md, which lie in the current folder."""

import asyncio
import importlib
import sys
from typing import Any

import otel_audit

if not otel_audit.install():
    sys.exit("not installed")

from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider

trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
sys.path.insert(0, ".")

if "crm" in sys.argv:
    app: Any = importlib.import_module("crm").app
    FastAPIInstrumentor.instrument_app(app)
    with TestClient(app) as client:
        client.post("/contacts/7/merge/8?ticket=5").raise_for_status()
        assert client.post("/contacts/7/merge/7?ticket=5").status_code == 409
        client.get("/contacts/7").raise_for_status()
if "jobs" in sys.argv:
    jobs: Any = importlib.import_module("jobs")
    assert jobs.merge("7", other="8") == "7+8"
    asyncio.run(jobs.nightly_sync())
    try:
        jobs.purge()
    except PermissionError:
        pass
    else:
        sys.exit("the exception did not go on")
