"""The small HTTP server: what it answers, and that nobody harms it."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus

import pytest

from gptflow.errors import ConfigError
from gptflow.queue import status_server
from gptflow.queue.status_server import Response, StatusServer

Make = Callable[..., StatusServer]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[StatusServer] = []

    def start(host: str = "127.0.0.1", **routes: Callable[[], Response]) -> StatusServer:
        paths = {f"/{name}": route for name, route in routes.items()}
        server = StatusServer(host, 0, paths, quick=frozenset({"/quick"}))
        server.start()
        made.append(server)
        return server

    yield start
    for server in made:
        server.stop()


def ask(server: StatusServer, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


def is_dropped(client: socket.socket, piece: bytes) -> bool:
    """Send a piece again and again, for 5 seconds at most, until the server hangs up."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            client.sendall(piece)
        except OSError:
            return True
        time.sleep(0.02)
    return False


def text(words: str, status: HTTPStatus = HTTPStatus.OK) -> Callable[[], Response]:
    return lambda: Response(words.encode(), status=status)


def test_it_answers_what_it_knows_and_refuses_the_rest(make: Make) -> None:
    server = make(quick=text("yes"), slow=text("no", HTTPStatus.SERVICE_UNAVAILABLE))
    assert ask(server, "/quick?a=b") == (200, b"yes")
    assert ask(server, "/slow") == (503, b"no")
    assert ask(server, "/quick", "HEAD") == (200, b"")
    assert ask(server, "/quick", "POST")[0] == 405
    assert ask(server, "/../etc/passwd")[0] == 404


def test_a_route_that_raises_is_an_error_of_the_server(make: Make) -> None:
    def fail() -> Response:
        raise KeyError("a secret")

    server = make(quick=fail, slow=fail)
    assert ask(server, "/quick") == (500, b"{}")
    assert ask(server, "/slow") == (500, b"{}")
    assert ask(server, "/quick")[0] == 500


def test_a_probe_is_answered_while_metrics_wait(make: Make) -> None:
    begun, go = threading.Event(), threading.Event()
    calls = 0

    def wait() -> Response:
        nonlocal calls
        calls += 1
        begun.set()
        assert go.wait(10)
        return Response(b"late")

    server = make(quick=text("yes"), slow=wait)
    answers: list[tuple[int, bytes]] = []
    askers = [
        threading.Thread(target=lambda: answers.append(ask(server, "/slow"))) for _ in range(5)
    ]
    for asker in askers:
        asker.start()
    assert begun.wait(10)
    assert ask(server, "/quick") == (200, b"yes")
    go.set()
    for asker in askers:
        asker.join()
    assert answers == [(200, b"late")] * 5
    assert calls <= 5


def test_clients_that_say_nothing_are_dropped_and_keep_nobody_out(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_server, "HEAD_SECONDS", 0.3)
    server = make(quick=text("yes"))
    address = ("127.0.0.1", server.port)
    silent = [socket.create_connection(address, timeout=10) for _ in range(100)]
    assert ask(server, "/quick") == (200, b"yes")
    started = time.monotonic()
    for client in silent:
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        client.close()
    assert time.monotonic() - started < 5


def test_a_client_that_drips_is_dropped_in_time(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_server, "HEAD_SECONDS", 0.3)
    server = make(quick=text("yes"))
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    assert is_dropped(client, b"G")
    client.close()
    assert ask(server, "/quick") == (200, b"yes")


def test_a_client_that_does_not_read_is_dropped(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_server, "TOTAL_SECONDS", 0.3)
    server = make(slow=text("x" * 50_000_000))
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    client.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
    until = time.monotonic() + 5
    while not server._connections and time.monotonic() < until:
        time.sleep(0.01)
    while server._connections and time.monotonic() < until:
        time.sleep(0.01)
    assert not server._connections
    client.close()


def test_more_than_a_request_is_refused(make: Make) -> None:
    server = make(quick=text("yes"))
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    assert is_dropped(client, b"X-Header: " + b"a" * 10_000 + b"\r\n")
    client.close()
    assert ask(server, "/quick") == (200, b"yes")


def test_a_port_that_is_taken_is_a_setting_that_is_wrong(make: Make) -> None:
    taken = make(quick=text("yes")).port
    with pytest.raises(ConfigError, match=f"127.0.0.1:{taken}.*in use") as error:
        StatusServer("127.0.0.1", taken, {}).start()
    assert "metrics_port" in str(error.value.hint)


def test_it_is_reached_on_the_loopback_address_only(make: Make) -> None:
    assert make(quick=text("yes")).url.startswith("http://127.0.0.1:")
    from gptflow.config import Settings

    assert Settings().metrics_host == "127.0.0.1"
    assert Settings().metrics_port is None
