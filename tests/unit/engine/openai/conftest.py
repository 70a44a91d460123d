"""A real HTTP server that answers as real model servers did, and misbehaves on request."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gptflow.engine.openai import OpenAIEngine, connect

HERE = Path(__file__).parent
WAIT = 20.0


def _record() -> ModuleType:
    """The module that made the recordings; test modules cannot import one another."""
    spec = importlib.util.spec_from_file_location("record", HERE / "record.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECORD = _record()


class Replay(ThreadingHTTPServer):
    """Answers requests from a recording.

    Attributes:
        requests: what was asked: path, fields of the body, headers.
        script: called with each request before it is answered; returns an answer of its own,
            or None for the recorded one.
    """

    daemon_threads = True

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.exchanges = json.loads((HERE / "recorded" / f"{name}.json").read_text("utf-8"))
        self.requests: list[SimpleNamespace] = []
        self.script: Callable[[SimpleNamespace], Any] = lambda _: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, path: str) -> list[dict[str, Any]]:
        """The bodies that were sent to a path."""
        return [request.body for request in self.requests if request.path == path]

    def handle_error(self, *_: Any) -> None:
        """Clients hang up on purpose here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Replay

    def _replay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = SimpleNamespace(
            path=self.path,
            body=json.loads(body) if body else None,
            headers=self.headers,
            handler=self,
        )
        self.server.requests.append(request)
        answer = self.server.script(request)
        if answer is None:
            answer = self.server.exchanges.get(RECORD.key_of(self.command, self.path, body))
        if answer is None:
            answer = {"status": 599, "answer": json.dumps({"error": {"type": "NotRecorded"}})}
        if answer != "answered":
            self.answer(**answer)

    def answer(
        self,
        status: int = 200,
        answer: str = "{}",
        type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send a whole answer."""
        self.begin(status, type, headers or {}, len(answer.encode()))
        self.wfile.write(answer.encode())

    def begin(
        self, status: int, type: str, headers: dict[str, str], length: int | None = None
    ) -> None:
        """Send an answer's head; without a length it ends with the connection."""
        self.send_response(status)
        self.send_header("Content-Type", type)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is None:
            self.close_connection = True
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def event(self, fields: dict[str, Any]) -> None:
        """Send one event of a stream."""
        self.wfile.write(f"data: {json.dumps(fields)}\n\n".encode())
        self.wfile.flush()

    def wait_for_hang_up(self) -> bool:
        """Whether the client closes its end soon."""
        self.connection.settimeout(WAIT)
        try:
            return self.connection.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    do_GET = do_POST = _replay  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def record() -> ModuleType:
    return RECORD


@pytest.fixture
def make_server() -> Iterator[Callable[[str], Replay]]:
    """Starts servers that answer from the recording of a name."""
    servers: list[Replay] = []

    def make(name: str = "vllm") -> Replay:
        server = Replay(name)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def make_remote(make_server: Callable[[str], Replay]) -> Iterator[Callable[..., Any]]:
    """Starts engines, each with a server of its own; returns both."""
    engines: list[OpenAIEngine] = []

    def make(name: str = "vllm", **options: Any) -> tuple[OpenAIEngine, Replay]:
        server = make_server(name)
        engine = connect(server.url, **{"wait": 0, "timeout": WAIT, **options})
        engines.append(engine)
        server.requests.clear()
        return engine, server

    yield make
    for engine in engines:
        engine.close()
        assert not engine.healthy
        assert isinstance(json.dumps(dict(engine.stats())), str)


@pytest.fixture(params=["vllm", "llama_cpp"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)
