"""redaction.yaml: secrets are gone from everything that leaves, and from the Collector's disk; identity is as it was."""

import json
from pathlib import Path
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.collector.pipeline import Place, arrived, call, send
from tests.collector.support import Service
from tests.otlp_support import encoded, request
from tests.support import check_log

SECRET = "s3cr3t"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"

SECRETS: dict[str, Any] = {
    "http.request.header.authorization": [f"Bearer {SECRET}"],
    "http.request.header.x_api_key": [SECRET],
    "http.request.header.cookie": [SECRET],
    "http.response.header.set_cookie": [SECRET],
    "http.request.body": SECRET,
    "http.request.body.content": SECRET,
    "rpc.request.metadata.authorization": [SECRET],
    "rpc.grpc.request.metadata.token": [SECRET],
    "url.query": f"token={SECRET}",
    "url.fragment": SECRET,
    "user_agent.original": f"curl {SECRET}",
    "db.statement": f"select '{SECRET}'",
    "db.query.text": f"select '{SECRET}'",
    "db.query.parameter.0": SECRET,
    "graphql.document": SECRET,
    "messaging.message.body": SECRET,
    "user.email": f"{SECRET}@example.com",
    "user.full_name": SECRET,
    "enduser.role": SECRET,
    "password": SECRET,
    "Authorization": SECRET,
    "x_api_key": SECRET,
    "access_token": SECRET,
    "app.note": f"sent with bearer {SECRET}.abcdefgh",
    "app.jwt": f"the token {JWT} was used",
}
CUT: dict[str, tuple[str, str]] = {
    "url.full": (f"https://me:{SECRET}@crm.example/contacts/1?token={SECRET}#x", "https://crm.example/contacts/1"),
    "http.url": (f"http://me:{SECRET}@crm.example/contacts/1?token={SECRET}", "http://crm.example/contacts/1"),
    "http.target": (f"/contacts/1?token={SECRET}", "/contacts/1"),
}
IDENTITY: dict[str, Any] = {
    "audit.client.id": "partner-07",
    "audit.client.name": "Acme partner",
    "audit.client.auth": "api_key:verified",
    "audit.client.ip": "203.0.113.20",
    "audit.client.ip.source": "forwarded",
    "audit.peer.ip": "10.0.0.9",
    "audit.source.id": "crm/1",
    "audit.source.seq": 7,
    "audit.reason": "asked by phone",
    "user.id": "u-17",
    "http.request.method": "PUT",
    "http.route": "/contacts/{id}",
    "url.path": "/contacts/1",
    "http.response.status_code": 403,
    "client.address": "203.0.113.20",
    "network.peer.address": "10.0.0.9",
}
RESOURCE = {
    "service.name": "crm",
    "service.version": "4.2",
    "deployment.environment.name": "test",
    "service.instance.id": "i-1",
}
OVERLAY = """
exporters:
  file: {path: PATH, flush_interval: 50ms}
service:
  pipelines:
    traces/audit: {exporters: [otlp_grpc/audit, file]}
"""


def _request() -> bytes:
    made = call(0, **SECRETS, **{key: before for key, (before, _) in CUT.items()}, **IDENTITY)
    made.name = f"PUT /contacts/1?token={SECRET}"
    made.status.code, made.status.message = Status.STATUS_CODE_ERROR, f"bad token {SECRET}"
    event = made.events.add(name="exception", time_unix_nano=made.start_time_unix_nano)
    for key in ("exception.message", "exception.stacktrace", "exception.type"):
        event.attributes.add(key=key).value.string_value = "ValueError" if key.endswith("type") else SECRET
    return encoded(
        request(made, resource={**RESOURCE, "process.command_args": [SECRET], "process.command_line": SECRET})
    )


def _record(folder: Path, *configs: str | Path) -> dict[str, Any]:
    """The record of the call after a Collector with these files."""
    folder.mkdir()
    with Service(folder / "log") as service:
        place = Place(folder, service.grpc)
        with place.start(*configs):
            send(place.grpc, iter([_request()]))
            arrived(service, 1)
        (record,) = check_log(service.directory)
    return {k: v for k, v in record.items() if k not in ("recorded_at", "seq", "log")}


def _attributes(listed: list[dict[str, Any]]) -> dict[str, Any]:
    return {a["key"]: next(iter(a["value"].values()), None) for a in listed}


def test_secrets_are_gone_and_identity_is_as_it_was(tmp_path: Path) -> None:
    exported, overlay = tmp_path / "spans.json", tmp_path / "overlay.yaml"
    overlay.write_text(OVERLAY.replace("PATH", str(exported)))
    redacted = _record(tmp_path / "redacted", "redaction.yaml", overlay)
    assert redacted == _record(tmp_path / "plain", "agent.yaml")  # every column, the other audit.* attributes too

    text = exported.read_text()
    assert SECRET not in text
    assert JWT not in text
    (span,) = json.loads(text)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    left = _attributes(span["attributes"])
    assert {key: left[key] for key in CUT} == {key: after for key, (_, after) in CUT.items()}
    assert {key: str(left[key]) for key in IDENTITY} == {key: str(value) for key, value in IDENTITY.items()}
    assert set(left) == set(CUT) | set(IDENTITY) | {"app.note", "app.jwt"}
    assert (span["name"], span["status"]) == ("PUT /contacts/1", {"code": 2})
    assert _attributes(span["events"][0]["attributes"]) == {"exception.type": "ValueError"}
    resource = _attributes(json.loads(text)["resourceSpans"][0]["resource"]["attributes"])
    assert resource == RESOURCE


def test_the_queue_on_disk_holds_no_secret(tmp_path: Path) -> None:
    place = Place(tmp_path, "127.0.0.1:9")
    with place.start("redaction.yaml"):
        send(place.grpc, iter([_request()]))
    held = b"".join(path.read_bytes() for path in (tmp_path / "queue").iterdir())
    assert b"partner-07" in held
    assert SECRET.encode() not in held
