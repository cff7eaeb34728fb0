"""What is dropped never leaves the process, whatever attribute or text of the record it would be in."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind
from opentelemetry.trace.status import Status, StatusCode

from otel_audit.capture import redact as redact_module
from otel_audit.capture.call import Call
from otel_audit.capture.processor import AuditSpanProcessor, Calls
from otel_audit.capture.redact import Redactor
from otel_audit.capture.rules import Do, Redaction
from tests.spool_support import Caught, within

SECRET = "s3cr3t-7f"


def redactor(*said: tuple[str, Do] | tuple[str, Do, int], key: bytes = b"k") -> Redactor:
    return Redactor((Redaction.of(*one) for one in said), key)


def test_attributes_are_dropped_hashed_truncated_and_kept_and_the_first_match_counts() -> None:
    by = redactor(("app.kept", "keep"), ("app.cut", "truncate", 3), ("app.*", "drop"), ("other", "hash"))
    shown = by.apply({"app.kept": "x", "app.cut": "abcdef", "app.gone": "x", "other": "x", "left": "x"})
    assert shown == {"app.kept": "x", "app.cut": "abc", "other": shown["other"], "left": "x"}
    assert re.fullmatch(r"hmac:[0-9a-f]{16}", shown["other"])


def test_nothing_to_redact_changes_nothing() -> None:
    said = {"a": 1}
    assert redactor().apply(said) is said
    assert redactor(("b", "drop")).apply(said) is said
    assert redactor().empty


def test_hashes_are_the_same_for_the_same_value_and_key_alone() -> None:
    def hashed(value: object, key: bytes = b"k") -> Any:
        return redactor(("a", "hash"), key=key).apply({"a": value})["a"]

    assert hashed("x") == hashed("x") != hashed("y")
    assert hashed("x") != hashed("x", b"other")
    assert hashed(7) == hashed("7")
    assert hashed(("x", "y")) == (hashed("x"), hashed("y"))
    assert hashed(b"x") == hashed("x")
    assert hashed({"b": 1, "a": 2}) == hashed({"a": 2, "b": 1})
    assert hashed(None) is None
    assert hashed("\ud800")


def test_truncation_leaves_numbers_and_cuts_all_else() -> None:
    by = redactor(("a", "truncate", 2))
    for value, shown in (("abc", "ab"), (b"abc", b"ab"), (123, 123), (True, True), (["abc"], ["ab"]), (None, None)):
        assert by.apply({"a": value}) == {"a": shown}
    assert by.apply({"a": {"x": 1}}) == {"a": '{"'}


class Unreadable:
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_a_value_that_cannot_be_read_is_not_shown() -> None:
    assert redactor(("a", "hash")).apply({"a": Unreadable(), "b": 1}) == {"b": 1}


def test_what_shows_and_explains_gaps_cannot_be_redacted() -> None:
    said = {"audit.source.id": "x", "audit.source.seq": 1, "audit.loss.count": 2, "audit.incomplete": True}
    assert redactor(("*", "drop")).apply(said) is said


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact_module, "_CACHE_MAX", 10)
    by = redactor(("b*", "drop"))
    for n in range(100):
        assert by.apply({f"a{n}": 1, f"b{n}": 1}) == {f"a{n}": 1}
        assert len(by._found) <= 10


# --- one thing has several names ------------------------------------------------------------------------------------------
PATHS = {"url.path": "/c/7", "http.target": "/c/7?q=1", "http.url": "http://h/c/7?q=1", "url.full": "http://h/c/7?q=1"}
ADDRESSES = {
    "audit.client.ip": "192.0.2.7",
    "audit.peer.ip": "192.0.2.7",
    "audit.client.ip.chain": "192.0.2.7",
    "client.address": "192.0.2.7",
    "http.client_ip": "192.0.2.7",
    "net.peer.ip": "192.0.2.7",
    "network.peer.address": "192.0.2.7",
    "net.sock.peer.addr": "192.0.2.7",
}
USERS = {"user.id": "kim", "enduser.id": "kim"}


@pytest.mark.parametrize(("names", "also"), [(PATHS, ()), (ADDRESSES, ()), (USERS, ()), (PATHS, ("audit.target.id",))])
def test_whoever_drops_one_name_of_a_thing_drops_it(names: dict[str, str], also: tuple[str, ...]) -> None:
    for name in also or names:
        assert redactor((name, "drop")).apply({**names, "left": 1, name: "x"}) == {"left": 1}, name


def test_a_name_of_its_own_counts_before_another_of_the_same_thing() -> None:
    shown = redactor(("net.peer.ip", "drop"), ("client.address", "truncate", 4), ("audit.peer.ip", "keep")).apply(
        ADDRESSES
    )
    assert (shown.get("net.peer.ip"), shown["client.address"]) == (None, "192.")
    assert shown["audit.peer.ip"] == "192.0.2.7"
    assert "audit.client.ip" not in shown


@pytest.mark.parametrize("do", ["drop", "hash", "truncate"])
def test_the_query_is_cut_from_wherever_it_is(do: Do) -> None:
    shown = redactor(("url.query", do)).apply({**PATHS, "left": 1})
    assert shown == {
        "url.path": "/c/7",
        "http.target": "/c/7",
        "http.url": "http://h/c/7",
        "url.full": "http://h/c/7",
        "left": 1,
    }
    assert redactor(("url.query", "keep")).apply(PATHS) is PATHS


# --- the whole record -----------------------------------------------------------------------------------------------------
def record_of(tmp_path: Path, by: Redactor, attributes: dict[str, Any], *, name: str = "GET", **more: Any) -> Caught:
    recorder = Caught(tmp_path)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(AuditSpanProcessor(Calls(recorder, redactor=by, **more)))
    call = Call({"audit.client.id": "web"})
    span = provider.get_tracer("t").start_span(name, within(call), SpanKind.SERVER, attributes)
    span.record_exception(KeyError(SECRET))
    span.set_status(Status(StatusCode.ERROR, f"KeyError: {SECRET}"))
    span.end()
    return recorder


def spooled(recorder: Caught) -> bytes:
    return b"".join(file.read_bytes() for file in recorder.spool.folder.iterdir() if file.is_file())


def test_messages_of_exceptions_and_the_status_text_are_one_thing(tmp_path: Path) -> None:
    assert SECRET.encode() in spooled(record_of(tmp_path / "open", redactor(("x", "drop")), {}))
    recorder = record_of(tmp_path / "hidden", redactor(("exception.message", "drop")), {})
    assert SECRET.encode() not in spooled(recorder)
    (span,) = recorder.calls()
    assert span.events == ["exception"], "that there was one is told"
    assert b"KeyError" in spooled(recorder)


@pytest.mark.parametrize(
    ("name", "attributes", "shown"),
    [
        (f"GET /{SECRET}", {"http.method": "GET", "url.path": f"/{SECRET}"}, "GET"),
        ("GET /c/{id}", {"http.method": "GET", "http.route": "/c/{id}", "url.path": f"/c/{SECRET}"}, "GET /c/{id}"),
        (f"HTTP /{SECRET}", {"http.scheme": "ws", "url.path": f"/{SECRET}"}, "HTTP"),
        ("/crm.v1.C/Get", {"rpc.system": "grpc", "rpc.method": "Get"}, "/crm.v1.C/Get"),
    ],
)
def test_the_name_of_a_span_does_not_tell_a_path_that_is_hidden(
    name: str, attributes: dict[str, Any], shown: str, tmp_path: Path
) -> None:
    by = redactor(("url.path", "drop"), ("exception.message", "drop"))
    recorder = record_of(tmp_path, by, attributes, name=name)
    assert [s.name for s in recorder.calls()] == [shown]
    assert SECRET.encode() not in spooled(recorder)


def test_a_refused_start_record_is_redacted_too(tmp_path: Path) -> None:
    by = redactor(("url.path", "drop"), ("exception.message", "drop"))
    recorder = record_of(
        tmp_path, by, {"http.method": "GET", "url.path": f"/{SECRET}"}, name=f"/{SECRET}", mode="fail-closed"
    )
    assert (recorder.spool.folder / "open").stat().st_size > 100
    assert SECRET.encode() not in spooled(recorder)


def test_the_caller_can_be_hashed_and_the_log_has_the_hash(tmp_path: Path) -> None:
    recorder = record_of(tmp_path, redactor(("audit.client.id", "hash")), {})
    assert recorder.calls()[0].attributes["audit.client.id"].startswith("hmac:")


def test_a_target_is_not_made_from_what_was_dropped(tmp_path: Path) -> None:
    attributes = {"http.method": "GET", "http.route": "/c/{id}", **PATHS, "audit.target.id": "7"}
    recorder = record_of(tmp_path, redactor(("audit.target.id", "drop")), attributes)
    (record,) = recorder.decoded()
    assert (record["target"], record["action"]) == (None, "read")


NAMES = st.sampled_from(
    [*PATHS, *ADDRESSES, *USERS, "url.query", "audit.target.id", "audit.note", "audit.client.id", "app.x", "http.route"]
)
VALUES = st.sampled_from([SECRET, f"/a/{SECRET}", f"http://h/{SECRET}?a={SECRET}", [SECRET], b"x" + SECRET.encode()])


@given(st.dictionaries(NAMES, VALUES, min_size=1), st.booleans())
def test_a_dropped_value_is_never_in_the_encoded_bytes(
    tmp_path_factory: pytest.TempPathFactory, attributes: dict[str, Any], by_glob: bool
) -> None:
    """Also where the record would take it from another attribute, the exception or the span's name."""
    patterns = ["*"] if by_glob else [*attributes, "exception.message"]
    by = redactor(*((pattern, "drop") for pattern in patterns))
    said = {"http.method": "GET", **attributes}
    recorder = record_of(
        tmp_path_factory.mktemp("r"), by, said, name=f"GET /a/{SECRET}" if "url.path" in attributes else "GET"
    )
    (span,) = recorder.calls()
    assert not attributes.keys() & span.attributes.keys()
    assert SECRET.encode() not in spooled(recorder)
