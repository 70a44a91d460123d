"""StatusServer: a worker's metrics and probes over HTTP, a small part of it.

It has a thread and an event loop of its own, so that a probe is answered while the worker is
busy, and a client that is slow, silent or hostile keeps nobody from anything: every connection
has a time limit, requests have a size limit, and when there are too many connections the oldest
one goes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

from gptflow.errors import ConfigError

logger = logging.getLogger(__name__)

HEAD_SECONDS = 2.0
"""Seconds within which a request must have come."""

TOTAL_SECONDS = 10.0
"""Seconds within which the answer must have been taken."""

MOST_CONNECTIONS = 64
_HEAD_BYTES = 8192


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """An answer to a GET."""

    body: bytes
    content_type: str = "application/json"
    status: HTTPStatus = HTTPStatus.OK


class StatusServer:
    """Answers GET and HEAD of a few paths, from `start` to `stop`.

    Args:
        port: 0 for any that is free.
        routes: what gives the answer, by path. Called on a thread that may wait, and not twice
            at the same time: who asks meanwhile gets the same answer.
        quick: the paths whose answers need no waiting.

    Attributes:
        port: the one it listens on.
    """

    def __init__(
        self,
        host: str,
        port: int,
        routes: Mapping[str, Callable[[], Response]],
        *,
        quick: frozenset[str] = frozenset(),
    ) -> None:
        self.port = port
        self._host = host
        self._routes = routes
        self._quick = quick
        self._answers: dict[str, asyncio.Future[Response]] = {}
        self._connections: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._loop = asyncio.new_event_loop()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="gptflow-status-answer")
        self._thread = threading.Thread(target=self._run, name="gptflow-status", daemon=True)

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the address or the port is not to be had.
        """
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        except OSError as error:
            self.stop()
            raise ConfigError(
                f"Metrics cannot be served on {self.url}: {error.strerror or error}.",
                hint="Set another metrics_port; 0 takes any that is free.",
            ) from None

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, self._host, self.port, limit=_HEAD_BYTES
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if hasattr(self, "_server"):
            self._server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= MOST_CONNECTIONS:
            next(iter(self._connections)).cancel()
        self._connections[task] = None
        try:
            async with asyncio.timeout(TOTAL_SECONDS):
                async with asyncio.timeout(HEAD_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, asyncio.CancelledError, asyncio.LimitOverrunError, EOFError, OSError):
            pass  # whoever it was has gone, is too slow, or says too much
        finally:
            del self._connections[task]
            writer.transport.abort()

    async def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if path not in self._routes:
            response = Response(b"{}", status=HTTPStatus.NOT_FOUND)
        elif method not in ("GET", "HEAD"):
            response = Response(b"{}", status=HTTPStatus.METHOD_NOT_ALLOWED)
        else:
            response = await self._call(path)
        lines = (
            f"HTTP/1.1 {response.status.value} {response.status.phrase}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            "Cache-Control: no-store",
            "Connection: close",
            "",
            "",
        )
        return "\r\n".join(lines).encode() + (b"" if method == "HEAD" else response.body)

    async def _call(self, path: str) -> Response:
        try:
            if path in self._quick:
                return self._routes[path]()
            answer = self._answers.get(path)
            if answer is None or answer.done():
                answer = self._loop.run_in_executor(self._threads, self._routes[path])
                self._answers[path] = answer
            return await asyncio.shield(answer)
        except Exception as error:  # noqa: BLE001  the next one may go well
            logger.error("%s failed: %s.", path, type(error).__name__)
            return Response(b"{}", status=HTTPStatus.INTERNAL_SERVER_ERROR)
