"""What handlers of real frameworks say about their calls is on the records, sampled or not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from otel_audit.capture.rules import Rules
from tests.capture_support import APPS, Sink, Span, environment, grpc_sink, service

DOCS = Path(__file__).parents[2] / "docs"


def run(app: str, sink: Sink, folder: Path, *arguments: str, **env: str) -> list[str]:
    """Run one of the applications to its end, which delivers what it recorded; the lines it printed."""
    given = environment(
        OTEL_AUDIT_ENDPOINT=sink.address,
        OTEL_AUDIT_SPOOL_DIR=str(folder / "spool"),
        OTEL_AUDIT_EXIT_TIMEOUT="30",
        **env,
    )
    command = [sys.executable, "-W", "ignore", str(APPS / app), *arguments]
    done = subprocess.run(command, env=given, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def recorded(app: str, folder: Path, count: int, *arguments: str, **env: str) -> list[Span]:
    with grpc_sink() as sink:
        run(app, sink, folder, *arguments, **env)
        found = sink.wait(count)
    assert len(found) == count
    return found


SAID = {"audit.action": "approve", "audit.target.id": "7", "audit.reason": "ticket 7", "audit.note": "from within"}

OPERATIONS: dict[str, list[str | None]] = {
    "fastapi": ["read_async", "read_sync", "readByDependency", "named", "read_background"],
    "starlette": ["read", "Things"],
    "flask": ["things.read_thing"],
    "django": ["thing"],
    "django-async": ["__main__.read_async"],
    "aiohttp": ["read_thing", "a-thing"],
    "tornado": ["Thing.get"],
    "falcon": ["Thing.on_get"],
    "pyramid": ["thing", "traversed"],
    "grpc": [None, None],
    "grpc-aio": [None, None],
}


@pytest.mark.parametrize("framework", OPERATIONS)
def test_handlers_annotate_their_calls_and_operations_are_named_by_themselves(framework: str, tmp_path: Path) -> None:
    operations = [name for name in OPERATIONS[framework] for _ in range(2)]
    found = recorded("annotated.py", tmp_path, len(operations), framework)
    assert [s.attributes.get("audit.operation") for s in found] == operations
    for span in found:
        assert span.kind == 2
        assert span.attributes.items() >= SAID.items()
    sampled, unsampled = "a1" * 16, "c3" * 16
    assert sorted(s.trace_id for s in found) == [sampled] * (len(found) // 2) + [unsampled] * (len(found) // 2)


@pytest.mark.parametrize(
    ("kind", "off"), [("uvicorn", ""), ("uvicorn", "fastapi,asgi"), ("flask", ""), ("gunicorn-uvicorn", "")]
)
def test_real_servers_name_operations_too_and_fastapis_own_telemetry_does(kind: str, off: str, tmp_path: Path) -> None:
    with grpc_sink() as sink:
        env = environment(OTEL_AUDIT_ENDPOINT=sink.address, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=off)
        with service(kind, tmp_path, env) as s:
            assert s.get("/things/1") == 200
            assert s.get("/nowhere") == 404
            found = sink.wait(2)
        assert [x.attributes.get("audit.operation") for x in found] == ["read_thing", None]


# --- what a call took ------------------------------------------------------------------------------------------------------
CALLS = {
    "/sqlalchemy": (4, None),  # one to connect
    "/sqlite": (3, None),
    "/http": (None, 6),
    "/threads": (6, None),
    "/background": (1, None),
    "/elsewhere": (None, None),
}


@pytest.mark.parametrize("sampler", ["always_on", "always_off"])
def test_database_and_outgoing_calls_are_summed_sampled_or_not_and_each_once(sampler: str, tmp_path: Path) -> None:
    with grpc_sink() as sink:
        seen = run("busy.py", sink, tmp_path, OTEL_TRACES_SAMPLER=sampler)
        found = {str(s.attributes["http.route"]): s for s in sink.wait(8)}
    counted = {
        p: (found[p].attributes.get("audit.db.calls"), found[p].attributes.get("audit.http.calls")) for p in CALLS
    }
    assert counted == CALLS
    for path, (db, http) in CALLS.items():
        said = found[path].attributes
        assert (said.get("audit.db.duration_ns", 0) > 0, said.get("audit.http.duration_ns", 0) > 0) == (
            bool(db),
            bool(http),
        )
        assert found[path].kind == 2
    if sampler == "always_off":
        assert seen == [], "what is recorded for the audit alone reaches nobody else"
    else:
        assert seen.count("SELECT") >= 3 + 3 + 6 + 6


@pytest.mark.parametrize("sampler", ["always_on", "always_off"])
@pytest.mark.parametrize(
    "limits", [{}, {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "16"}, {"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "10"}]
)
def test_who_and_what_survive_the_sdks_limits_on_attributes(
    limits: dict[str, str], sampler: str, tmp_path: Path
) -> None:
    with grpc_sink() as sink:
        run("busy.py", sink, tmp_path, OTEL_TRACES_SAMPLER=sampler, **limits)
        found = [s for s in sink.wait(8) if "many" in str(s.attributes["http.route"])]
    routes = ["/many/{thing_id}", "/many/<int:thing_id>"]
    if "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT" in limits:
        routes = [route[:10] for route in routes]
    assert [s.attributes["http.route"] for s in found] == routes
    for span in found:
        said = span.attributes
        assert said.items() >= {"audit.action": "approve", "audit.target.id": "7", "audit.note": "n"}.items()
        assert said["audit.reason"] == "r" * 50
        assert said["audit.client.id"].startswith("key:")
        assert len(said["audit.client.id"]) == len("key:") + 16
        assert said["audit.client.auth"] == "api_key (unverified)"
        assert (said["http.method"], said["http.status_code"]) == ("GET", 200)


# --- a broken rules file, and the examples of the documentation -------------------------------------------------------------
@pytest.mark.parametrize("text", ['[[redact]]\natribute = "x"\ndo = "drop"', None])
def test_a_broken_rules_file_leaves_calls_audited_and_hides_what_it_may_have_meant(
    text: str | None, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    if text is not None:
        rules.write_text(text)
    found = recorded("annotated.py", tmp_path, 2, "flask", OTEL_AUDIT_RULES=str(rules))
    for span in found:
        said = span.attributes
        assert said["http.route"] == "/things/<int:thing_id>"
        assert (said["audit.action"], said["audit.operation"]) == ("approve", "things.read_thing")
        assert said["audit.target.id"].startswith("hmac:")
        assert not {"audit.note", "audit.reason", "http.target", "net.peer.ip"} & said.keys()


def test_a_good_rules_file_names_and_hides(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[rule]]\nroute = "/things/{id}"\nservice = "things-service"\naction = "never, the handler said"\n'
        '[[redact]]\nattribute = "audit.note"\ndo = "drop"\n[[redact]]\nattribute = "audit.reason"\ndo = "hash"\n'
    )
    for span in recorded("annotated.py", tmp_path, 2, "flask", OTEL_AUDIT_RULES=str(rules), OTEL_AUDIT_HASH_KEY="k"):
        said = span.attributes
        assert (said["audit.service"], said["audit.action"]) == ("things-service", "approve")
        assert "audit.note" not in said
        assert said["audit.reason"].startswith("hmac:")


DOCUMENTED = re.findall(r"```(\w+)\n# (\S+)\n(.*?)```", (DOCS / "annotate.md").read_text(), re.DOTALL)


def test_the_examples_of_the_documentation_do_what_it_says(tmp_path: Path) -> None:
    for _, name, text in DOCUMENTED:
        (tmp_path / name).write_text(text)
    merged, refused, read, merge, sync, purge = recorded(
        "documented.py", tmp_path, 6, "crm", "jobs", OTEL_AUDIT_RULES="rules.toml", OTEL_AUDIT_HASH_KEY="k"
    )
    said = merged.attributes
    assert (said["audit.action"], said["audit.target.id"], said["audit.reason"]) == ("merge", "7", "ticket 5")
    assert said["audit.merged"].startswith("hmac:")
    assert refused.attributes["audit.outcome"] == "denied"
    assert (read.attributes["audit.service"], read.attributes["audit.action"]) == ("contacts", "look-up")
    assert read.attributes["audit.operation"] == "getContact"
    assert merge.attributes.items() >= {"audit.action": "merge", "audit.target.id": "7"}.items()
    assert sync.attributes.items() >= {"audit.action": "nightly_sync", "audit.contacts": 3}.items()
    assert (purge.attributes["audit.target.id"], purge.events) == ("trash", ["exception"])


@pytest.mark.parametrize("name", ["rules.toml", "rules.yaml"])
def test_the_rules_of_the_documentation_are_understood(name: str, tmp_path: Path) -> None:
    (text,) = (text for _, its_name, text in DOCUMENTED if its_name == name)
    (tmp_path / name).write_text(text)
    assert not Rules.load(tmp_path / name).empty


def test_every_framework_is_documented() -> None:
    text = (DOCS / "annotate.md").read_text()
    for framework in ("FastAPI", "Starlette", "Flask", "Django", "aiohttp", "Tornado", "Falcon", "Pyramid", "gRPC"):
        assert re.search(rf"^\|.*{framework}.*\|", text, re.MULTILINE), framework
