"""The engine: one thread that runs the model for everybody.

    submit ──tokenise──▶ inbox ─▶ scheduler ─▶ one forward ─▶ heads ─▶ finaliser ──▶ future

Each step takes what has arrived, drops what was cancelled or is too late, lets the scheduler
pick rows of many requests, runs them through the model together, and gives each sequence what
its head reads off. Texts are decoded and futures resolved on a second thread, so that nobody's
callback holds up the model.

A request that goes wrong fails alone. Where the model itself fails, nobody can tell by whose
fault: all sequences of that step fail, and may be tried again. The engine goes on with the
next step, but stops for good after a few that failed in a row.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from gptflow.engine.native import Library
from gptflow.engine.pending import BaselineKey, Pending, fail
from gptflow.engine.prefix import PrefixCache
from gptflow.engine.prepare import Preparer
from gptflow.engine.runner import Runner
from gptflow.engine.sampler import sample
from gptflow.engine.scheduler import Scheduler
from gptflow.engine.scoring import Scoring, Target
from gptflow.engine.sequence import Chunk, Decoding, Pooling, Sequence
from gptflow.engine.slots import KVSlots
from gptflow.engine.statistics import Statistics
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import (
    EngineError,
    EngineStopped,
    GPTFlowError,
    JobTimeout,
    StepFailed,
    raised_at,
)
from gptflow.heads import Raw
from gptflow.prompt import RenderedPrompt
from gptflow.request import Delta, ModelInfo, Request

log = logging.getLogger(__name__)

_BASELINES = 1024
"""Content-free scores to keep: a few numbers each."""

_FAILED_STEPS = 3
"""Steps that fail in a row before the engine gives up: then it is not one request's fault."""


class TorchEngine:
    """A resident model behind `gptflow.request.Engine`.

    Args:
        model: a causal language model of transformers, in evaluation mode. The engine owns
            it from here on.
        tokenizer: its vocabulary.
        info: what the model is called; `context` is cut to what model and slots hold.
        slots: sequences that run at the same time.
        slot_tokens: most tokens of one sequence.
        threads: of the CPU; None leaves torch's own choice.
        step_tokens: rows of one step while something decodes. More makes prompts faster and
            the time between two tokens longer.
        prefill_tokens: rows of one step while nothing decodes.
        prefix_bytes: size of the prefix cache.
        cache_dtype: of keys and values; by default the weights' own.
        library: the compiled kernels, to run attention on them.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Vocabulary,
        info: ModelInfo,
        *,
        slots: int = 64,
        slot_tokens: int = 2048,
        threads: int | None = None,
        step_tokens: int = 256,
        prefill_tokens: int = 1024,
        prefix_bytes: int = 256 << 20,
        cache_dtype: torch.dtype | None = None,
        library: Library | None = None,
    ) -> None:
        context = min(info.context, slot_tokens)
        weight = next(model.parameters())
        self._info = ModelInfo(
            id=info.id,
            sha256=info.sha256,
            context=context,
            dtype=info.dtype or str(weight.dtype).removeprefix("torch."),
            device=str(weight.device),
        )
        self._slots = KVSlots.for_model(
            model.config, slots=slots, length=context, like=weight, dtype=cache_dtype
        )
        log.info(
            "key-value cache: %d slots of %d tokens, %.0f MiB",
            slots,
            context,
            self._slots.nbytes / 2**20,
        )
        self._vocabulary = tokenizer
        self._threads = threads
        self._runner = Runner(model, self._slots, tokenizer.size, library)
        self._prefixes = PrefixCache(prefix_bytes)
        self._scheduler = Scheduler(
            self._slots, self._prefixes, step_tokens=step_tokens, prefill_tokens=prefill_tokens
        )
        self._preparer = Preparer(tokenizer, context)
        self._baselines: OrderedDict[BaselineKey, Scoring] = OrderedDict()
        self._deadlines: list[tuple[float, int, Pending]] = []
        self._ticket = itertools.count()
        self._statistics = Statistics()
        self._failed_steps = 0

        self._changed = threading.Condition()  # guards what follows
        self._inbox: deque[Pending] = deque()
        self._cancelled: deque[Pending] = deque()
        self._requests: dict[str, Pending] = {}
        self._stopped: EngineStopped | None = None

        self._finaliser = ThreadPoolExecutor(1, thread_name_prefix="gptflow-finaliser")
        self._thread = threading.Thread(target=self._run, name="gptflow-engine", daemon=True)
        self._thread.start()

    @property
    def model(self) -> ModelInfo:
        return self._info

    @property
    def healthy(self) -> bool:
        """False once it was closed or has crashed: every request fails from then on."""
        return self._stopped is None and self._thread.is_alive()

    def submit(self, request: Request) -> Future[Raw]:
        """Queue a request; it is tokenised here, in the caller's thread.

        The future's result is the raw answer of the request's head. Its exception is a
        `GPTFlowError`; `JobTimeout` if the deadline passed first.
        """
        try:
            pending = self._preparer.prepare(request)
        except Exception as error:  # noqa: BLE001  the future carries it
            future: Future[Raw] = Future()
            fail(future, _told(error, "preparing", request.id))
            return future
        with self._changed:
            refused: GPTFlowError | None = self._stopped
            if refused is None and request.id in self._requests:
                refused = EngineError(f"A request {request.id!r} is in flight already.")
            if refused is None:
                self._requests[request.id] = pending
                self._inbox.append(pending)
                self._changed.notify()
        if refused is not None:
            fail(pending.future, refused)
        else:
            pending.future.add_done_callback(lambda future: self._forget(pending, future))
        return pending.future

    def cancel(self, request_id: str) -> bool:
        """Stop a request wherever it is; its future is cancelled. False if it had ended."""
        with self._changed:
            pending = self._requests.get(request_id)
        return pending is not None and pending.future.cancel()

    def count_tokens(self, prompt: RenderedPrompt) -> int:
        """How many tokens the prompt takes, chat format included."""
        return len(self._vocabulary.encode(prompt))

    def stats(self) -> Mapping[str, Any]:
        """Counters since the start and gauges of this moment; see `Statistics`."""
        return {
            "running": len(self._scheduler.running),
            "waiting": self._scheduler.waiting + len(self._inbox),
            "slots": self._slots.slots,
            "slots_used": self._slots.slots - self._slots.free,
            "kv_tokens": sum(sequence.done for sequence in tuple(self._scheduler.running)),
            "prefix_hits": self._prefixes.hits,
            "prefix_bytes": self._prefixes.nbytes,
            "model": self._info.id,
            "dtype": self._info.dtype,
            "device": self._info.device,
            **self._statistics.as_dict(),
        }

    def close(self) -> None:
        """Stop. Requests in flight fail with `EngineStopped`; so do later ones."""
        self._stop(EngineStopped("The engine was closed."))
        # A callback may close the engine; the engine's thread waits for callbacks to end.
        if not threading.current_thread().name.startswith("gptflow-"):
            self._thread.join()

    # What follows runs on the engine's thread, except `_stop` and `_forget`.

    def _run(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                while self._gather():
                    self._step()
        except Exception as error:
            log.exception("the engine has crashed")
            self._stop(EngineStopped(f"The engine crashed: {type(error).__name__}."))
        self._finaliser.shutdown()  # answers that are complete still arrive
        with self._changed:
            reason = self._stopped
            left = [*self._requests.values(), *(p for p in self._cancelled if not p.closed)]
        assert reason is not None
        for pending in left:
            fail(pending.future, reason)

    def _stop(self, reason: EngineStopped) -> None:
        with self._changed:
            self._stopped = self._stopped or reason
            self._changed.notify()

    def _forget(self, pending: Pending, future: Future[Raw]) -> None:
        with self._changed:
            self._requests.pop(pending.request.id, None)
            if future.cancelled():
                self._cancelled.append(pending)
                self._changed.notify()

    def _gather(self) -> bool:
        """Wait for something to do and take in what has changed; False to stop."""
        with self._changed:
            while not (self._inbox or self._cancelled or self._scheduler.busy or self._stopped):
                self._changed.wait()
            if self._stopped:
                return False
            arrived, self._inbox = self._inbox, deque()
            cancelled, self._cancelled = self._cancelled, deque()
        for pending in arrived:
            try:
                self._accept(pending)
            except Exception as error:  # noqa: BLE001  the request's future carries it
                self._fail(pending, _told(error, "accepting", pending.request.id))
        for pending in cancelled:
            if not pending.closed:
                self._drop(pending)
                pending.future.set_running_or_notify_cancel()  # tells whoever waits for it
        while self._deadlines and self._deadlines[0][0] <= time.time():
            late = heapq.heappop(self._deadlines)[2]
            self._fail(late, JobTimeout("The deadline passed before the answer was complete."))
        return True

    def _accept(self, pending: Pending) -> None:
        if pending.future.cancelled():
            return
        self._statistics.requests += 1
        if pending.request.deadline is not None:
            entry = (pending.request.deadline, next(self._ticket), pending)
            heapq.heappush(self._deadlines, entry)
            if len(self._deadlines) > 2 * len(self._requests) + 64:  # mostly answered ones
                self._deadlines = [entry for entry in self._deadlines if not entry[2].closed]
                heapq.heapify(self._deadlines)
        if pending.baseline is not None:
            pending.scored_baseline = self._join_baseline(pending, pending.baseline)
        pending.open += len(pending.sequences)
        for sequence in pending.sequences:
            sequence.owners.append(pending)
        # The other samples of a request follow when the first one has filled its slot.
        first = pending.sequences[0]
        if first.ended:  # a grammar that admits one text only
            self._emit(first)
            self._end(first)
        else:
            self._scheduler.add(first)

    def _join_baseline(self, pending: Pending, key: BaselineKey) -> Scoring:
        """The content-free scores: those at hand, those under way, or new ones."""
        scoring = self._baselines.get(key)
        if scoring is None:
            scoring = self._baselines[key] = Scoring(*key, room=self._info.context)
            # Many requests are going to wait for it, and it is short.
            scoring.job_class = "interactive"
            self._scheduler.add(scoring, first=True)
            if len(self._baselines) > _BASELINES:
                self._baselines.popitem(last=False)
        self._baselines.move_to_end(key)
        if not scoring.ended:
            scoring.owners.append(pending)
            pending.open += 1
        return scoring

    def _step(self) -> None:
        chunks = self._scheduler.plan()
        if not chunks:  # all that was waiting has just been dropped
            return
        try:
            self._compute(chunks)
        except Exception as error:
            self._failed_steps += 1
            if self._failed_steps == _FAILED_STEPS:
                raise
            log.exception("a step of the model has failed")
            told = StepFailed(f"The model failed on a step: {type(error).__name__}.")
            for chunk in chunks:
                self._abandon(chunk.sequence, told)
        else:
            self._failed_steps = 0

    def _compute(self, chunks: list[Chunk]) -> None:
        began = time.perf_counter()
        hidden = self._runner.forward(chunks)
        for chunk in chunks:
            chunk.sequence.done = chunk.stop
        self._share(chunks)
        self._read(chunks, hidden)
        self._statistics.step(
            seconds=time.perf_counter() - began,
            rows=len(hidden),
            running=len(self._scheduler.running),
        )
        for chunk in chunks:
            sequence = chunk.sequence
            if sequence.slot is not None and sequence.ended:
                with self._alone(sequence):
                    self._end(sequence)

    def _share(self, chunks: list[Chunk]) -> None:
        """Keep what others can start from: template prefixes, and the prompt of n samples."""
        for chunk in chunks:
            sequence = chunk.sequence
            assert sequence.slot is not None
            prefix = sequence.prefix
            if prefix is not None and chunk.start < len(prefix.ids) <= chunk.stop:
                saved = self._slots.save(sequence.slot, len(prefix.ids))
                self._prefixes.put(prefix, saved)
            if isinstance(sequence, Decoding) and sequence.siblings and sequence.remaining == 0:
                # Less one token: each sample needs the last row's logits for itself.
                saved = self._slots.save(sequence.slot, sequence.trunk - 1)
                for sibling in reversed(sequence.siblings):
                    sibling.shared = saved
                    self._scheduler.add(sibling, first=True)
                sequence.siblings = []

    def _read(self, chunks: list[Chunk], hidden: torch.Tensor) -> None:
        """Give each sequence what its head reads off the step."""
        drawing: list[tuple[int, Decoding]] = []
        scoring: list[tuple[int, Scoring, Target]] = []
        first = 0
        for chunk in chunks:
            match chunk.sequence:
                case Decoding() as sequence if sequence.remaining == 0:
                    drawing.append((first + len(chunk) - 1, sequence))
                case Scoring() as sequence:
                    offset = first - chunk.start
                    scoring += [
                        (offset + row, sequence, target)
                        for row, target in sequence.targets(chunk.start, chunk.stop)
                    ]
                case Pooling() as sequence:
                    with self._alone(sequence):
                        sequence.add(hidden[first : first + len(chunk)])
            first += len(chunk)
        if drawing:
            self._draw(hidden[[row for row, _ in drawing]], [s for _, s in drawing])
        if scoring:
            self._score(hidden, scoring)
        for chunk in chunks:
            if isinstance(chunk.sequence, Scoring):
                with self._alone(chunk.sequence):
                    chunk.sequence.advance()

    def _draw(self, hidden: torch.Tensor, sequences: list[Decoding]) -> None:
        rows = sample(self._runner.logits(hidden), sequences)
        for sequence, drawn in zip(sequences, rows, strict=True):
            with self._alone(sequence):
                if isinstance(drawn, Exception):
                    raise drawn
                sequence.accept(drawn.token, drawn.logprob)
                self._emit(sequence)

    def _score(self, hidden: torch.Tensor, wanted: list[tuple[int, Scoring, Target]]) -> None:
        values = self._runner.logprobs(hidden, [(row, token) for row, _, (_, token) in wanted])
        for (_, sequence, (continuation, _)), value in zip(wanted, values, strict=True):
            with self._alone(sequence):
                sequence.add(continuation, value)

    @contextlib.contextmanager
    def _alone(self, sequence: Sequence) -> Iterator[None]:
        """What goes wrong inside ends whoever depends on this sequence, and no one else."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  the requests' futures carry it
            ids = ", ".join(pending.request.id for pending in sequence.owners)
            self._abandon(sequence, _told(error, "computing", ids))

    def _end(self, sequence: Sequence) -> None:
        """Free a sequence's slot and answer the requests that waited for it alone."""
        if isinstance(sequence, Scoring | Pooling) and sequence.spoiled:
            raise EngineError("The model's output for this request is not a number.")
        self._scheduler.remove(sequence)
        self._statistics.ended(sequence)
        for pending in sequence.owners:
            pending.open -= 1
            if pending.open == 0:
                pending.closed = True
                self._finaliser.submit(pending.resolve)
        sequence.owners = []

    def _abandon(self, sequence: Sequence, error: GPTFlowError) -> None:
        """Take a sequence out that has gone wrong, and fail the requests that wait for it."""
        for key, scoring in tuple(self._baselines.items()):
            if scoring is sequence:
                del self._baselines[key]
        owners, sequence.owners = sequence.owners, []
        self._scheduler.remove(sequence, wipe=True)
        for pending in owners:
            self._fail(pending, error)

    def _fail(self, pending: Pending, error: GPTFlowError) -> None:
        if not pending.closed:
            self._drop(pending)
            self._finaliser.submit(fail, pending.future, error)

    def _drop(self, pending: Pending) -> None:
        """Stop all that runs for one request only."""
        pending.closed = True
        for sequence in pending.sequences:
            # It may have gone wrong already, with nobody having looked yet.
            self._scheduler.remove(sequence, wipe=True)
            sequence.owners = []
        baseline = pending.scored_baseline
        if baseline is not None and pending in baseline.owners:
            baseline.owners.remove(pending)  # it runs on: the next request will want it

    def _emit(self, sequence: Sequence) -> None:
        if not isinstance(sequence, Decoding) or not (text := sequence.take_text()):
            return
        for pending in sequence.owners:
            if pending.request.on_delta is not None:
                self._finaliser.submit(_tell, pending, Delta(text, sequence.sample))


def _told(error: Exception, doing: str, requests: str) -> GPTFlowError:
    """What to tell the caller of a request: never an exception's own words, which may quote."""
    if isinstance(error, GPTFlowError):
        return error
    name = type(error).__name__
    log.error("%s %s raised %s (%s)", doing, requests, name, raised_at(error, "gptflow"))
    return EngineError(f"{doing.capitalize()} the request failed: {name}.")


def _tell(pending: Pending, delta: Delta) -> None:
    """Pass on a piece of text, on the finaliser's thread."""
    if pending.future.cancelled() or pending.request.on_delta is None:
        return
    try:
        pending.request.on_delta(delta)
    except Exception:
        log.exception("on_delta of request %s raised", pending.request.id)
