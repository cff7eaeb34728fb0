"""The endpoint that Prometheus scrapes, over real sockets, with clients that behave and others."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from otel_audit._telemetry_endpoint import Endpoint
from otel_audit.errors import ConfigError
from otel_audit.receiver import parse_endpoint

TYPE = "text/plain; version=0.0.4; charset=utf-8"


@contextmanager
def endpoint(text: Callable[[], str] = lambda: "up 1\n", timeout_s: float = 30.0) -> Iterator[Endpoint]:
    made = Endpoint("127.0.0.1", 0, text, TYPE, timeout_s=timeout_s)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def ask(server: Endpoint, path: str = "/metrics", method: str = "GET") -> httpx.Response:
    return httpx.request(method, f"http://{server.address}{path}", trust_env=False, timeout=30)


def connect(server: Endpoint) -> socket.socket:
    sock = socket.create_connection(parse_endpoint(server.address), 30)
    sock.settimeout(30)
    return sock


def ended(sock: socket.socket) -> bool:
    """Whether the other side closes without a word, be it in good order or not."""
    with contextlib.suppress(ConnectionError):
        return sock.recv(1) == b""
    return True


def test_the_text_is_served_with_its_type() -> None:
    with endpoint() as server:
        response = ask(server, "/metrics?x=1")
        assert (response.status_code, response.text, response.headers["content-type"]) == (200, "up 1\n", TYPE)
        head = ask(server, method="HEAD")
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "5")


@pytest.mark.parametrize(("method", "path", "code"), [("GET", "/nothing", 404), ("POST", "/metrics", 405)])
def test_anything_else_is_refused(method: str, path: str, code: int) -> None:
    with endpoint() as server:
        assert ask(server, path, method).status_code == code


def test_what_cannot_be_collected_is_an_error_and_the_next_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    answers: Iterator[str] = iter(["up 1\n"])
    order = [OSError("no"), None]

    def text() -> str:
        if error := order.pop(0):
            raise error
        return next(answers)

    with endpoint(text) as server:
        assert ask(server).status_code == 500
        assert ask(server).status_code == 200
    assert "metrics could not be collected" in caplog.text


def test_a_client_that_does_not_ask_in_time_is_cut_off_and_holds_nobody_up() -> None:
    with endpoint(timeout_s=1.0) as server, connect(server) as slow:
        slow.sendall(b"GET /metrics HT")
        assert ask(server).status_code == 200
        assert ended(slow)


def test_a_client_that_does_not_read_is_cut_off() -> None:
    with endpoint(lambda: "x" * (64 << 20), timeout_s=1.0) as server, connect(server) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert slow.recv(1) == b"H"
        threading.Event().wait(1.5)  # the whole of the time it has
        received = 0
        with contextlib.suppress(ConnectionError):
            while part := slow.recv(1 << 20):
                received += len(part)
        assert received < 64 << 20


def test_a_head_that_does_not_end_is_not_read_for_ever() -> None:
    with endpoint() as server, connect(server) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * 100_000)
        assert ended(sock)


def test_clients_beyond_a_handful_are_sent_away_and_room_comes_back() -> None:
    with endpoint() as server:
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(connect(server)) for _ in range(16)]
            for sock in idle:
                sock.sendall(b"GET ")
            with connect(server) as late:
                assert ended(late)
        for _ in range(100):
            with contextlib.suppress(httpx.HTTPError):
                assert ask(server).status_code == 200
                return
        pytest.fail("there is no room again")


def test_a_taken_port_is_said() -> None:
    with endpoint() as server, pytest.raises(ConfigError, match="in use"):
        Endpoint("127.0.0.1", parse_endpoint(server.address)[1], str, TYPE)


def test_stopping_cuts_clients_off() -> None:
    with endpoint() as server, connect(server) as sock:
        sock.sendall(b"GET ")
        while not server._clients:  # the test's own time limit ends this
            threading.Event().wait(0.01)
        server.stop()
        assert ended(sock)
        with pytest.raises(ConnectionError):
            connect(server)
