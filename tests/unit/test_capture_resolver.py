"""The user's own resolver: what it is given, what its answer does, and that it can fail no call."""

import logging
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from otel_audit.capture.address import TrustedProxies
from otel_audit.capture.clients import Client, ClientDirectory, _Contents
from otel_audit.capture.identity import IdentityReader
from otel_audit.capture.resolver import Caller, Resolver

Answer = Callable[[Caller], Any]


def directory() -> ClientDirectory:
    found = ClientDirectory()
    found._now = _Contents({}, {"acme": Client("acme", "Acme Corp")})
    return found


def reader(function: Answer, **attributes: object) -> IdentityReader:
    for name, value in attributes.items():
        setattr(function, name, value)
    return IdentityReader(
        directory(), TrustedProxies(("10.0.0.0/8",)), load_resolver=lambda: Resolver(function, "own:resolve")
    )


def carrier(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "headers": list(headers), "client": ("10.1.1.1", 4711)}


BASIC = (b"authorization", b"Basic YWxpY2U6cHc=")


def named(found: Mapping[str, str] | None) -> tuple[str | None, ...]:
    assert found is not None
    return tuple(map(found.get, ("audit.client.id", "audit.client.name", "audit.client.auth", "user.id")))


def test_it_is_given_the_request_and_the_built_in_answer() -> None:
    seen: list[Caller] = []

    def resolve(caller: Caller) -> None:
        seen.append(caller)

    own = reader(resolve, headers=("X-Tenant",))
    found = own.attributes(
        carrier(BASIC, (b"x-tenant", b"acme"), (b"x-other", b"o"), (b"x-forwarded-for", b"198.51.100.1"))
    )
    assert named(found) == ("alice", None, "basic (unverified)", None), "None lets the built-in answer stand"
    (caller,) = seen
    assert caller.headers["x-tenant"] == "acme"
    assert caller.headers["authorization"] == BASIC[1].decode()
    assert "x-other" not in caller.headers, "only what is declared is read"
    assert (caller.client_ip, caller.peer_ip, caller.certificate) == ("198.51.100.1", "10.1.1.1", None)
    assert (caller.client_id, caller.client_auth, caller.user_id) == ("alice", "basic (unverified)", None)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            {"id": "t-1", "name": "Tenant", "auth": "tenant", "user": "bob"},
            ("t-1", "Tenant", "tenant", "bob"),
        ),
        ({"id": "acme"}, ("acme", "Acme Corp", "resolver", None)),
        ({"id": "t-1"}, ("t-1", None, "resolver", None)),
        ({"id": 7}, ("7", None, "resolver", None)),
        ({"id": None}, (None, None, "resolver", None)),
        ({"name": "Alice's"}, ("alice", "Alice's", "basic (unverified)", None)),
        ({"user": "bob"}, ("alice", None, "basic (unverified)", "bob")),
        ({"auth": "session"}, ("alice", None, "session", None)),
        ({"id": ["x"], "name": 1.5, "user": object()}, (None, None, "resolver", None)),
        ({}, ("alice", None, "basic (unverified)", None)),
    ],
)
def test_its_answer_names_the_client(answer: Mapping[str, object], expected: tuple[str | None, ...]) -> None:
    assert named(reader(lambda _: answer).attributes(carrier(BASIC))) == expected


def test_its_answer_is_not_remembered_for_another_request() -> None:
    own = reader(lambda caller: {"id": caller.headers.get("x-tenant")}, headers=["x-tenant"])
    assert named(own.attributes(carrier(BASIC, (b"x-tenant", b"a"))))[0] == "a"
    assert named(own.attributes(carrier(BASIC, (b"x-tenant", b"b"))))[0] == "b"


def fails(_: Caller) -> None:
    raise ValueError("secret of the request")


async def is_async(_: Caller) -> Mapping[str, str]:
    return {"id": "x"}


class Evil(Mapping[str, str]):
    def __getitem__(self, key: str) -> str:
        raise KeyError(key)

    def __iter__(self) -> Any:
        raise RuntimeError("no")

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (fails, "it raised ValueError (" + __file__),
        (is_async, "it gave a coroutine"),
        (lambda _: "alice", "it gave a str"),
        (lambda _: 7, "it gave a int"),
        (lambda _: Evil(), "it raised RuntimeError"),
        (lambda _: {1: 2}, "other keys"),
        (lambda: None, "it raised TypeError"),
    ],
)
def test_what_it_does_wrong_is_logged_once_and_the_built_in_answer_stands(
    function: Answer, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = reader(function)
    for _ in range(3):
        assert named(own.attributes(carrier(BASIC))) == ("alice", None, "basic (unverified)", None)
    assert caplog.text.count(says) == 1
    assert "secret of the request" not in caplog.text


def test_a_slow_one_is_not_asked_for_a_while(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    monkeypatch.setattr("otel_audit.capture.resolver.time", SimpleNamespace(monotonic=lambda: now[0]))
    asked: list[float] = []

    def slow(_: Caller) -> Mapping[str, str]:
        asked.append(now[0])
        now[0] += 0.3
        return {"id": "late"}

    own = reader(slow)
    assert named(own.attributes(carrier(BASIC)))[0] == "late", "what it answered counts"
    assert named(own.attributes(carrier(BASIC)))[0] == "alice"
    now[0] += 31
    assert named(own.attributes(carrier(BASIC)))[0] == "late"
    assert len(asked) == 2
    assert caplog.text.count("it took 0.30 s") == 1


def test_a_bad_list_of_headers_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    own = reader(lambda _: {"id": "x"}, headers="x-tenant")
    assert named(own.attributes(carrier(BASIC)))[0] == "x"
    assert "headers" in caplog.text


# --- where it comes from -----------------------------------------------------------------------------------------------
@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("own_resolver")
    made.resolve = lambda _: {"id": "own"}  # type: ignore[attr-defined]
    made.other = lambda _: {"id": "other"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_resolver", made)
    return made


def install(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    points = EntryPoints(EntryPoint("r", value, "otel_audit_resolver") for value in values)
    monkeypatch.setattr("importlib.metadata.entry_points", points.select)


@pytest.mark.usefixtures("module")
def test_the_setting_comes_before_the_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller({}, None, None, None, None, None, "none", None)
    install(monkeypatch)
    assert Resolver.load(None) is None
    install(monkeypatch, "own_resolver:other", "own_resolver:other")
    by_entry_point, by_setting = Resolver.load(None), Resolver.load("own_resolver:resolve")
    assert by_entry_point is not None
    assert by_setting is not None
    assert by_entry_point.resolve(caller) == {"id": "other"}
    assert by_setting.resolve(caller) == {"id": "own"}


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("setting", "points", "says"),
    [
        ("no_such_module_x:resolve", (), "ModuleNotFoundError"),
        ("own_resolver:nothing", (), "AttributeError"),
        ("own_resolver", (), "set OTEL_AUDIT_RESOLVER to module:callable"),
        (None, ("own_resolver:resolve", "own_resolver:other"), "several"),
        (None, ("no_such_module_x:resolve",), "ModuleNotFoundError"),
    ],
)
def test_one_that_cannot_be_loaded_is_reported_and_the_built_in_answer_stands(
    setting: str | None,
    points: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    install(monkeypatch, *points)
    own = IdentityReader(ClientDirectory(), TrustedProxies(), load_resolver=lambda: Resolver.load(setting))
    assert named(own.attributes(carrier(BASIC)))[0] == "alice"
    assert says in caplog.text
    assert "OTEL_AUDIT_RESOLVER" in caplog.text


def test_it_is_loaded_once_and_only_when_the_first_request_comes() -> None:
    loads: list[int] = []

    def load() -> None:
        loads.append(1)

    own = IdentityReader(ClientDirectory(), TrustedProxies(), load_resolver=load)
    assert not loads
    own.attributes(carrier())
    own.attributes(carrier())
    assert loads == [1]
