"""What a service may bring of its own: a resolver and a client directory."""

import os
from collections.abc import Mapping
from pathlib import Path

from otel_audit.capture.resolver import Caller


def resolve(caller: Caller) -> Mapping[str, str] | None:
    tenant = caller.headers.get("x-tenant")
    if tenant == "broken":
        raise RuntimeError("a fault of the application")
    return {"id": tenant, "auth": "tenant", "user": f"{caller.client_id}@{caller.peer_ip}"} if tenant else None


resolve.headers = ("X-Tenant",)  # type: ignore[attr-defined]


def clients() -> list[Mapping[str, str]]:
    return [{"id": "web", "name": "Web front end", "key": Path(os.environ["KEY_FILE"]).read_text()}]
