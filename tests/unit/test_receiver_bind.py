import errno
from collections.abc import Callable

import pytest

from otel_audit._receiver_bind import bind, is_loopback, join_address, parse_endpoint
from otel_audit.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:4317", "127.0.0.1", 4317), ("[::1]:0", "::1", 0), ("crm.example:65535", "crm.example", 65535)],
)
def test_an_endpoint_is_host_and_port_both_ways(text: str, host: str, port: int) -> None:
    assert parse_endpoint(text) == (host, port)
    assert join_address(host, port) == text


@pytest.mark.parametrize("text", ["", "4317", "localhost", "localhost:", ":4317", "::1:4317", "a:-1", "a:65536", "a:٣"])
def test_what_is_no_endpoint_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="write it as"):
        parse_endpoint(text)


def refusing(*codes: int) -> tuple[list[tuple[str, int]], Callable[[str, int], int]]:
    """What was tried, and a function that fails with these codes, one after the other; 0 is success."""
    tried: list[tuple[str, int]] = []

    def bind_one(address: str, port: int) -> int:
        code = codes[len(tried)]
        tried.append((address, port))
        if code:
            raise OSError(code, "no")
        return port or 5000

    return tried, bind_one


@pytest.fixture
def _two_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_audit._receiver_bind._addresses", lambda _: ["127.0.0.1", "::1"])


@pytest.mark.usefixtures("_two_addresses")
def test_a_name_is_listened_to_on_all_its_addresses_with_one_port() -> None:
    tried, bind_one = refusing(0, 0)
    assert bind("localhost:0", bind_one) == ("localhost", 5000)
    assert tried == [("127.0.0.1", 0), ("::1", 5000)]


@pytest.mark.usefixtures("_two_addresses")
@pytest.mark.parametrize("codes", [(0, errno.EADDRNOTAVAIL), (errno.EAFNOSUPPORT, 0)])
def test_an_address_that_the_machine_has_not_is_left_out(codes: tuple[int, int]) -> None:
    _, bind_one = refusing(*codes)
    assert bind("localhost:4317", bind_one) == ("localhost", 4317)


@pytest.mark.usefixtures("_two_addresses")
@pytest.mark.parametrize("codes", [(errno.EADDRINUSE,), (0, errno.EADDRINUSE)])
def test_a_port_that_is_taken_on_any_address_is_an_error(codes: tuple[int, ...]) -> None:
    _, bind_one = refusing(*codes)
    with pytest.raises(ConfigError, match="in use"):
        bind("localhost:4317", bind_one)


@pytest.mark.usefixtures("_two_addresses")
@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.EACCES, "1024 or above"), (errno.EADDRNOTAVAIL, "no such address"), (errno.ENOBUFS, "buffer")],
)
def test_why_an_address_cannot_be_used_is_said(code: int, said: str) -> None:
    _, bind_one = refusing(code, code)
    with pytest.raises(ConfigError, match=said):
        bind("localhost:4317", bind_one)


@pytest.mark.parametrize(("second", "refused"), [("192.0.2.1", True), ("::", True), ("::1", False)])
def test_nothing_is_listened_on_where_other_machines_must_not_reach_any_of_it(
    second: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_audit._receiver_bind._addresses", lambda _: ["127.0.0.1", second])
    tried, bind_one = refusing(0, 0)
    error = ConfigError("listen on", "crm:0", "it is exposed")
    if refused:
        with pytest.raises(ConfigError) as raised:
            bind("crm:0", bind_one, error)
        assert raised.value is error
        assert tried == []
    bind("crm:0", bind_one, None if refused else error)
    assert [address for address, _ in tried] == ["127.0.0.1", second]


def test_a_host_that_is_not_known_is_an_error() -> None:
    _, bind_one = refusing()
    with pytest.raises(ConfigError, match="host is not known"):
        bind("no such host:4317", bind_one)


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("::", False)])
def test_only_addresses_of_this_machine_are_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
