"""Transport: JSON and server-sent events over HTTP, with limits, turns and retries."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2

from gptflow.engine.openai.refusal import BUSY, refusal
from gptflow.errors import EngineError, GPTFlowError, JobTimeout, ServerUnavailable
from gptflow.request import JobClass

log = logging.getLogger(__name__)

_RETRIES = 5
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 10.0  # seconds

_CONNECT_SECONDS = 10.0
_HEAD_START: Mapping[JobClass, float] = {"interactive": 60.0, "standard": 10.0, "batch": 0.0}
"""Seconds by which a class overtakes those that have waited as long."""


class Turns:
    """Lets so many in at once; the urgent first, but nobody waits for ever."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._queue: list[tuple[float, int, asyncio.Future[None]]] = []
        self._ticket = itertools.count()

    @property
    def waiting(self) -> int:
        return sum(not turn.done() for _, _, turn in self._queue)

    @contextlib.asynccontextmanager
    async def turn(self, job_class: JobClass) -> AsyncIterator[None]:
        """Wait for a place and hold it."""
        if self._free:
            self._free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            rank = time.monotonic() - _HEAD_START[job_class]
            heapq.heappush(self._queue, (rank, next(self._ticket), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # it was given a place all the same
                    self._leave()
                raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        while self._queue:
            turn = heapq.heappop(self._queue)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Transport:
    """One server's HTTP connections. Lives on one event loop.

    A request is tried again when the server could not be reached, hung up before it answered,
    or said that it is busy (429, 503); never once an answer has begun. A request that is
    cancelled closes its connection, which is how servers learn that nobody wants the rest.

    Args:
        url: the server's address, with or without `/v1` at its end.
        api_key: sent as a bearer token.
        timeout: seconds without a byte after which an answer is given up.
        parallel: HTTP requests in flight at once.
    """

    def __init__(self, url: str, *, api_key: str | None, timeout: float, parallel: int) -> None:
        self.retries = 0
        self._turns = Turns(parallel)
        self._client = httpx2.AsyncClient(
            base_url=url.rstrip("/").removesuffix("/v1"),
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            timeout=httpx2.Timeout(timeout, connect=_CONNECT_SECONDS, pool=None),
            limits=httpx2.Limits(max_connections=parallel, max_keepalive_connections=parallel),
        )

    @property
    def waiting(self) -> int:
        """HTTP requests that wait for their turn."""
        return self._turns.waiting

    async def get(self, path: str) -> Any:
        """The JSON that a `GET` answers with.

        Raises:
            GPTFlowError: as `post` does.
        """
        async with self._open("GET", path, None, "interactive") as response:
            return await _read(response, path)

    async def post(self, path: str, body: Mapping[str, Any], job_class: JobClass) -> Any:
        """The JSON that a `POST` of JSON answers with.

        Raises:
            ServerUnavailable: the server cannot be reached, or remains busy.
            GPTFlowError: the server refused; see `refusal`.
        """
        async with self._open("POST", path, body, job_class) as response:
            return await _read(response, path)

    async def stream(
        self, path: str, body: Mapping[str, Any], job_class: JobClass
    ) -> AsyncIterator[dict[str, Any]]:
        """The JSON events that a `POST` answers with, as they arrive.

        Raises:
            GPTFlowError: as `post` does; also in the middle, where the server breaks off.
        """
        async with self._open("POST", path, body, job_class) as response:
            with _translated(path):
                async for event in httpx2.EventSource(response):
                    if event.data == "[DONE]":
                        return
                    parsed = json.loads(event.data)
                    if "error" in parsed:
                        code = (parsed["error"] or {}).get("code")
                        raise refusal(
                            code if isinstance(code, int) else 500, event.data.encode(), path=path
                        )
                    yield parsed
        raise ServerUnavailable("The model server broke off its answer.")

    async def close(self) -> None:
        await self._client.aclose()

    @contextlib.asynccontextmanager
    async def _open(
        self, method: str, path: str, body: Mapping[str, Any] | None, job_class: JobClass
    ) -> AsyncIterator[httpx2.Response]:
        """A response whose status is 200; its body is not read yet."""
        async with self._turns.turn(job_class):
            response = await self._send(method, path, body)
            try:
                if response.status_code != 200:
                    with _translated(path):
                        raise refusal(response.status_code, await response.aread(), path=path)
                yield response
            finally:
                await response.aclose()

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> httpx2.Response:
        for attempt in itertools.count():
            request = self._client.build_request(method, path, json=body)
            wait: float | None = None
            try:
                response = await self._client.send(request, stream=True)
            except (httpx2.NetworkError, httpx2.ConnectTimeout, httpx2.RemoteProtocolError) as e:
                if attempt == _RETRIES:
                    raise _unreachable(e) from None
            except httpx2.HTTPError as error:
                raise _unreachable(error) from None
            else:
                if response.status_code not in BUSY or attempt == _RETRIES:
                    return response
                await response.aclose()
                wait = _asked_for(response)
            self.retries += 1
            if wait is None:
                wait = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1)  # noqa: S311
            log.debug("%s %s: attempt %d in %.2f s", method, path, attempt + 2, wait)
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")


async def _read(response: httpx2.Response, path: str) -> Any:
    with _translated(path):
        return json.loads(await response.aread())


@contextlib.contextmanager
def _translated(path: str) -> Any:
    """What goes wrong while an answer is read, as one of GPTFlow's errors."""
    try:
        yield
    except GPTFlowError:
        raise
    except httpx2.SSEError:
        raise EngineError(f"The model server's answer to {path} is not a stream.") from None
    except httpx2.HTTPError as error:
        raise _unreachable(error) from None
    except ValueError:
        raise EngineError(
            f"The model server's answer to {path} is not JSON.",
            hint="Is GPTFLOW_OPENAI_URL the address of an OpenAI-compatible server?",
        ) from None


def _unreachable(error: httpx2.HTTPError) -> GPTFlowError:
    if isinstance(error, httpx2.ReadTimeout):
        return JobTimeout(
            "The model server sent nothing for too long.", hint="Raise GPTFLOW_OPENAI_TIMEOUT."
        )
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return ServerUnavailable(
            "The model server cannot be reached.", hint="Check GPTFLOW_OPENAI_URL."
        )
    return ServerUnavailable(f"The model server broke off: {type(error).__name__}.")


def _asked_for(response: httpx2.Response) -> float | None:
    """The wait that the server asks for, in seconds, within reason."""
    try:
        return min(max(float(response.headers["retry-after"]), 0.0), _LONGEST_WAIT)
    except (KeyError, ValueError):
        return None
