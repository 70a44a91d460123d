"""The engine that has no model: a thread with an event loop, and a server at the other end.

Scheduling, batching and the prefix cache are the server's. What is left is to say the same
thing in its words, to keep hundreds of requests in flight, and to tell the caller in GPTFlow's
words what came of each one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from gptflow.adapter_info import AdapterInfo
from gptflow.engine.openai.caller import Caller
from gptflow.engine.openai.capabilities import adapters_of, list_models, probe
from gptflow.engine.openai.embedding import embed
from gptflow.engine.openai.generation import generate, structured
from gptflow.engine.openai.scoring import Ids, choose, require_scoring, totals
from gptflow.engine.openai.tokens import Tokens, at_most
from gptflow.engine.openai.transport import Transport
from gptflow.errors import (
    AdapterNotFound,
    ConfigError,
    EmptyInput,
    EngineError,
    EngineStopped,
    GPTFlowError,
    JobTimeout,
    ServerUnavailable,
    UnsupportedHead,
)
from gptflow.heads import (
    Choose,
    Embed,
    Generate,
    Json,
    Pooling,
    Raw,
    Score,
    Scored,
    Usage,
)
from gptflow.prompt import RenderedPrompt
from gptflow.request import Delta, ModelInfo, Request
from gptflow.tracebacks import raised_at

if TYPE_CHECKING:
    from gptflow.engine.tokenizer import Vocabulary

log = logging.getLogger(__name__)

_BASELINES = 1024
"""Content-free scores to keep: a few numbers each."""

_COUNT_SECONDS = 30.0
_BETWEEN_LOOKS = 1.0
"""Seconds between two looks for a server that is still loading its model."""

_ADAPTERS_SECONDS = 5.0
"""Seconds for which a list of adapters that lacks one is believed."""


def connect(
    url: str,
    *,
    model: str | None = None,
    api_key: str | None = None,
    vocabulary: Vocabulary | None = None,
    context: int | None = None,
    pooling: Pooling | None = None,
    timeout: float = 600.0,
    parallel: int = 256,
    wait: float = 60.0,
) -> OpenAIEngine:
    """Find out what the server at `url` can do, and start an engine on it.

    Args:
        url: its address, with or without `/v1` at its end.
        model: as the server calls it; not needed where it serves one.
        vocabulary: the model's own; without it the server tokenises.
        context: most tokens of one sequence, where the server does not tell or to allow less.
        pooling: how the server pools embeddings, as no server tells.
        timeout: seconds without a byte after which an answer is given up.
        parallel: HTTP requests in flight at once.
        wait: seconds to wait for a server that is not up yet.

    Raises:
        ServerUnavailable: it cannot be reached.
        ConfigError: it does not serve the model, or wants another API key.
    """
    if (requests_log := logging.getLogger("httpx2")).level == logging.NOTSET:
        # It would report every single request, at the level that workers log at.
        requests_log.setLevel(logging.WARNING)
    engine = OpenAIEngine(
        url,
        model=model,
        api_key=api_key,
        vocabulary=vocabulary,
        context=context,
        pooling=pooling,
        timeout=timeout,
        parallel=parallel,
    )
    try:
        engine.open(wait)
    except BaseException:
        engine.close()
        raise
    return engine


@dataclasses.dataclass(slots=True, eq=False)
class _Ticket:
    """A request in flight. Only the finaliser settles its future, and only once."""

    request: Request
    future: Future[Raw] = dataclasses.field(default_factory=Future)
    settled: bool = False

    def settle(self, raw: Raw | None = None, error: GPTFlowError | None = None) -> None:
        """Set the result or the exception, or acknowledge that the future was cancelled."""
        if self.settled:
            return
        self.settled = True
        if not self.future.set_running_or_notify_cancel():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            assert raw is not None
            self.future.set_result(raw)

    def tell(self, delta: Delta) -> None:
        """Pass on a piece of text."""
        if self.future.cancelled() or self.request.on_delta is None:
            return
        try:
            self.request.on_delta(delta)
        except Exception:
            log.exception("on_delta of request %s raised", self.request.id)


class OpenAIEngine:
    """A remote model behind `gptflow.request.Engine`; made by `connect`."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None,
        api_key: str | None,
        vocabulary: Vocabulary | None,
        context: int | None,
        pooling: Pooling | None,
        timeout: float,
        parallel: int,
    ) -> None:
        self._wanted_model = model
        self._vocabulary = vocabulary
        self._wanted_context = context
        self._pooling = pooling
        self._transport = Transport(url, api_key=api_key, timeout=timeout, parallel=parallel)
        self._baselines: OrderedDict[tuple[Any, ...], asyncio.Task[tuple[float, ...]]] = (
            OrderedDict()
        )
        self._looked = 0.0
        self._counts = {"requests": 0, "failed": 0, "tokens_in": 0, "tokens_out": 0}
        self._cached = 0

        self._lock = threading.Lock()  # guards what follows
        self._tickets: dict[str, _Ticket] = {}
        self._stopped: EngineStopped | None = None

        self._tasks: dict[str, asyncio.Task[None]] = {}  # the loop's own
        self._finaliser = ThreadPoolExecutor(1, thread_name_prefix="gptflow-finaliser")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="gptflow-engine", daemon=True)
        self._thread.start()

    def open(self, wait: float) -> None:
        """Look at the server, for `wait` seconds if need be; see `connect`."""
        asyncio.run_coroutine_threadsafe(self._open(wait), self._loop).result()

    @property
    def model(self) -> ModelInfo:
        """The remote model; its files are not here, so that their hash is empty."""
        return self._info

    @property
    def healthy(self) -> bool:
        """False once it was closed. A server that is away may come back."""
        return self._stopped is None and self._thread.is_alive()

    def submit(self, request: Request) -> Future[Raw]:
        """Send a request on its way.

        The future's result is the raw answer of the request's head. Its exception is a
        `GPTFlowError`; `JobTimeout` if the deadline passed first.
        """
        ticket = _Ticket(request)
        with self._lock:
            refused: GPTFlowError | None = self._stopped
            if refused is None and request.id in self._tickets:
                refused = EngineError(f"A request {request.id!r} is in flight already.")
            if refused is None:
                self._tickets[request.id] = ticket
                self._counts["requests"] += 1
                # Under the lock: once the engine is stopped, its loop takes no more.
                self._loop.call_soon_threadsafe(self._begin, ticket)
        if refused is not None:
            ticket.settle(error=refused)
        else:
            ticket.future.add_done_callback(lambda _: self._forget(ticket))
        return ticket.future

    def cancel(self, request_id: str) -> bool:
        """Stop a request; its future is cancelled and its connection closed.

        False if it had ended.
        """
        with self._lock:
            ticket = self._tickets.get(request_id)
        return ticket is not None and ticket.future.cancel()

    def count_tokens(self, prompt: RenderedPrompt) -> int:
        """How many tokens the prompt takes, chat format included.

        Where neither a vocabulary nor the server can tell, as many as there can be at most.
        Without a vocabulary this asks the server, and takes as long as that does.
        """
        if self._stopped is not None:
            return at_most(prompt)
        if self._tokens.knows(prompt):
            return len(self._tokens.own_ids(prompt))
        if not self._server.capabilities.tokenize:
            return at_most(prompt)
        counting = asyncio.run_coroutine_threadsafe(self._tokens.count(prompt), self._loop)
        try:
            return counting.result(_COUNT_SECONDS)
        except TimeoutError:
            counting.cancel()
            raise ServerUnavailable("The model server does not answer.") from None

    def adapters(self) -> Mapping[str, AdapterInfo]:
        """The LoRA adapters that the server served when it was last asked.

        It is asked again when a request names another one. What they were made of is not told.
        """
        return {
            alias: AdapterInfo(alias=alias, sha256="", manifest=None, rank=0, nbytes=0)
            for alias in self._server.capabilities.adapters
        }

    def stats(self) -> Mapping[str, Any]:
        """Counters since the start, gauges of this moment, and the server's capabilities."""
        with self._lock:
            open_ = len(self._tickets)
        waiting = min(self._transport.waiting, open_)
        return {
            "running": open_ - waiting,
            "waiting": waiting,
            "http_waiting": self._transport.waiting,
            "http_retries": self._transport.retries,
            "cached_tokens": self._cached,
            "model": self._info.id,
            "dtype": self._info.dtype,
            "device": self._info.device,
            "capabilities": self._server.capabilities.as_dict(),
            **self._counts,
        }

    def close(self) -> None:
        """Stop. Requests in flight fail with `EngineStopped`; so do later ones."""
        with self._lock:
            first = self._stopped is None
            self._stopped = self._stopped or EngineStopped("The engine was closed.")
        if first:
            self._loop.call_soon_threadsafe(self._loop.stop)
        # A callback may close the engine; the engine's thread waits for callbacks to end.
        if not threading.current_thread().name.startswith("gptflow-"):
            self._thread.join()

    # What follows runs on the engine's thread, except `_forget`.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            with self._lock:
                self._stopped = self._stopped or EngineStopped("The engine crashed.")
                left = list(self._tickets.values())
            for ticket in left:
                self._finaliser.submit(ticket.settle, error=self._stopped)
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(self._finish())
            self._finaliser.shutdown()
            self._loop.close()

    async def _finish(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)
        await self._transport.close()

    async def _open(self, wait: float) -> None:
        until = time.monotonic() + wait
        while True:
            try:
                self._server = await probe(self._transport, model=self._wanted_model)
                break
            except ServerUnavailable:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(_BETWEEN_LOOKS)
        can = self._server.capabilities
        told, wanted = can.context, self._wanted_context
        context = min(told, wanted) if told and wanted else told or wanted
        if not context:
            raise ConfigError(
                f"{can.server} does not tell how long its context is.",
                hint="Set GPTFLOW_OPENAI_CONTEXT to the number of tokens.",
            )
        self._info = ModelInfo(
            id=self._server.model, sha256="", context=context, dtype="remote", device="remote"
        )
        self._tokens = Tokens(self._transport, self._server, self._vocabulary)
        log.info("%s serves %s: %s", can.server, self._server.model, can.as_dict())

    def _begin(self, ticket: _Ticket) -> None:
        if not ticket.future.done():
            serving = self._loop.create_task(self._serve(ticket))
            self._tasks[ticket.request.id] = serving

    def _forget(self, ticket: _Ticket) -> None:
        with self._lock:
            self._tickets.pop(ticket.request.id, None)
            stopped = self._stopped is not None
            if ticket.future.cancelled() and not stopped:
                self._loop.call_soon_threadsafe(self._abort, ticket)

    def _abort(self, ticket: _Ticket) -> None:
        if task := self._tasks.get(ticket.request.id):
            task.cancel()
        self._finaliser.submit(ticket.settle)

    async def _serve(self, ticket: _Ticket) -> None:
        """Answer one request. A task that is cancelled has its future settled by others."""
        request = ticket.request
        seconds = None if request.deadline is None else request.deadline - time.time()
        try:
            async with asyncio.timeout(seconds) as limit:
                raw = await self._answer(request, ticket)
        except TimeoutError:
            late = JobTimeout("The deadline passed before the answer was complete.")
            self._fail(ticket, late if limit.expired() else _told(TimeoutError(), request.id))
        except Exception as error:  # noqa: BLE001  the future carries it
            self._fail(ticket, _told(error, request.id))
        else:
            self._counts["tokens_in"] += raw.usage.tokens_in
            self._counts["tokens_out"] += raw.usage.tokens_out
            self._cached += raw.usage.cached
            raw = dataclasses.replace(raw, adapter=request.head.adapter)
            self._finaliser.submit(ticket.settle, raw)
        finally:
            self._tasks.pop(request.id, None)

    def _fail(self, ticket: _Ticket, error: GPTFlowError) -> None:
        self._counts["failed"] += 1
        self._finaliser.submit(ticket.settle, error=error)

    async def _answer(self, request: Request, ticket: _Ticket) -> Raw:
        caller = Caller(
            transport=self._transport,
            server=self._server,
            tokens=self._tokens,
            request=request,
            model=await self._model(request.head.adapter),
            context=self._info.context,
        )
        match request.head:
            case Generate() as head:
                return await generate(
                    caller, head, lambda delta: self._finaliser.submit(ticket.tell, delta)
                )
            case Json() as head:
                return await structured(caller, head)
            case Choose() as head:
                means, free, usage = await self._likelihoods(
                    caller, head.texts, calibrate=head.calibrate, mean=True
                )
                return choose(head, means, free, usage)
            case Score(each=None) as head:
                pair, blank, usage = await self._likelihoods(
                    caller, (head.yes, head.no), calibrate=True, mean=False
                )
                value = pair[0] - pair[1] - (blank[0] - blank[1] if blank else 0.0)
                return Scored(values=(value,), usage=usage)
            case Embed() as head:
                return await embed(caller, head, self._pooling)
        raise UnsupportedHead(
            f"The engine does not compute {type(request.head).__name__} by itself.",
            hint="Submit it through gptflow.executor, which takes it apart.",
        )

    async def _model(self, adapter: str | None) -> str:
        """The server's name for the model with this adapter.

        Raises:
            AdapterNotFound: the server does not serve it.
        """
        if adapter is None:
            return self._server.model
        can = self._server.capabilities
        if adapter not in can.adapters and time.monotonic() - self._looked > _ADAPTERS_SECONDS:
            self._looked = time.monotonic()
            names = adapters_of(await list_models(self._transport), self._server.model)
            can = dataclasses.replace(can, adapters=names)
            self._server = dataclasses.replace(self._server, capabilities=can)
        if adapter not in can.adapters:
            raise AdapterNotFound(
                f"{can.server} does not serve an adapter {adapter!r}.",
                hint="vLLM: --enable-lora --lora-modules NAME=FOLDER.",
            )
        return adapter

    async def _likelihoods(
        self, caller: Caller, texts: tuple[str, ...], *, calibrate: bool, mean: bool
    ) -> tuple[tuple[float, ...], tuple[float, ...] | None, Usage]:
        """Each text's log-likelihood after the prompt, and after the content-free one."""
        require_scoring(caller.can)
        request = caller.request
        ids = await self._tokens.ids(request.prompt, request.job_class)
        if not ids:
            raise EmptyInput("The prompt is empty.")
        tails = await self._tokens.continuations(texts, ids, request.job_class)
        longest = max(map(len, tails))
        caller.require_room(len(ids), longest)
        scored = asyncio.ensure_future(totals(caller, ids, tails))
        free: tuple[float, ...] | None = None
        try:
            if calibrate and request.baseline is not None:
                blank = await self._tokens.ids(request.baseline, request.job_class)
                caller.require_room(len(blank), longest)
                free = await self._baseline(caller, blank, tails)
            found = await scored
        finally:
            scored.cancel()
        if mean:
            found = _means(found, tails)
            free = None if free is None else _means(free, tails)
        return found, free, Usage(tokens_in=len(ids))

    async def _baseline(
        self, caller: Caller, ids: Ids, tails: tuple[Ids, ...]
    ) -> tuple[float, ...]:
        """The content-free scores: those at hand, those under way, or new ones."""
        key = (caller.model, ids, tails)
        task = self._baselines.get(key)
        if task is None:
            # Many requests are going to wait for it, and it is short. It outlives this one.
            own = dataclasses.replace(
                caller, request=dataclasses.replace(caller.request, job_class="interactive")
            )
            task = self._baselines[key] = self._loop.create_task(totals(own, ids, tails))
            if len(self._baselines) > _BASELINES:
                self._baselines.popitem(last=False)
        self._baselines.move_to_end(key)
        try:
            return await asyncio.shield(task)
        except GPTFlowError:
            if self._baselines.get(key) is task:
                del self._baselines[key]
            raise


def _told(error: Exception, request_id: str) -> GPTFlowError:
    """What to tell the caller of a request: never an exception's own words, which may quote."""
    if isinstance(error, GPTFlowError):
        return error
    name = type(error).__name__
    log.error("request %s raised %s (%s)", request_id, name, raised_at(error, "gptflow"))
    return EngineError(f"The request failed: {name}.")


def _means(totals: tuple[float, ...], tails: tuple[Ids, ...]) -> tuple[float, ...]:
    return tuple(total / len(tail) for total, tail in zip(totals, tails, strict=True))
