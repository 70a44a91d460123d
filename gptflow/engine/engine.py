"""The engine: one thread that runs the model for everybody.

    submit ──tokenise──▶ inbox ─▶ scheduler ─▶ one forward ─▶ heads ─▶ finaliser ──▶ future

Each step takes what has arrived, drops what was cancelled or is too late, lets the scheduler
pick rows of many requests, runs them through the model together, and gives each sequence what
its head reads off.

A request that goes wrong fails alone. Where the model itself fails on a step, its sequences are
run apart once, and those fail that it fails on again. If it fails on all of them, it is given one
token that is nobody's: the engine stops for good after a few steps in a row whose failure is not
the requests'.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from gptflow.adapter_info import AdapterInfo
from gptflow.engine import deadlines, memory
from gptflow.engine.adapter_pool import AdapterPool
from gptflow.engine.adapters import AdapterReader
from gptflow.engine.baselines import Baselines
from gptflow.engine.cuda import Operations
from gptflow.engine.deadlines import Deadlines
from gptflow.engine.events import Events
from gptflow.engine.intake import Intake
from gptflow.engine.lora import LoRABank
from gptflow.engine.lora_weights import Projection
from gptflow.engine.native import Library
from gptflow.engine.outcomes import Outcomes
from gptflow.engine.pending import Pending, fail, succeed, told
from gptflow.engine.prefix import PrefixCache
from gptflow.engine.prepare import Preparer
from gptflow.engine.reading import Reader
from gptflow.engine.runner import Runner
from gptflow.engine.scheduler import Scheduler
from gptflow.engine.sequence import Chunk, Decoding, Sequence
from gptflow.engine.sharing import Sharing
from gptflow.engine.statistics import Statistics, gauges
from gptflow.engine.tokenizer import Vocabulary
from gptflow.engine.trace import Phases, Trace
from gptflow.errors import EngineStopped, JobTimeout, StepFailed
from gptflow.heads import Raw
from gptflow.prompt import RenderedPrompt
from gptflow.request import ModelInfo, Request

log = logging.getLogger(__name__)

_FAILED_STEPS = 3
"""Steps in a row on which the model failed whatever it was given, before the engine gives up."""


class TorchEngine:
    """A resident model behind `gptflow.request.Engine`.

    Args:
        model: a causal language model of transformers, in evaluation mode. The engine owns
            it from here on.
        tokenizer: its vocabulary.
        info: what the model is called; `context` is cut to what model and slots hold.
        slots: sequences that decode at the same time.
        prefill_slots: sequences that only read a prompt, besides these; None for as many as
            `memory.settle` finds fit, 0 to have all sequences share the slots.
        slot_tokens: most tokens of one sequence.
        threads: of the CPU; None leaves torch's own choice.
        step_tokens: rows of one step while something decodes. More makes prompts faster and
            the time between two tokens longer.
        prefill_tokens: rows of one step while nothing decodes.
        prefix_bytes: size of the prefix cache.
        cache_dtype: of keys and values; by default the weights' own.
        library: the compiled kernels, to run attention on them.
        lora: of the model, where some of its layers call it themselves; by default a new one.
        adapter_bytes: weights of adapters to hold. Those that run never give way to others; a
            request waits until its own has room.
        kv_bytes: most memory for keys and values. By default all slots may be full at the
            same time or, where the system can tell and has less, as many as fit: a sequence
            then waits until its worst case has room.
        operations: see `Runner`; what is given decides the layout of the cache.

    Raises:
        ConfigError: the machine does not have the memory.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Vocabulary,
        info: ModelInfo,
        *,
        slots: int = 64,
        prefill_slots: int | None = None,
        slot_tokens: int = 2048,
        threads: int | None = None,
        step_tokens: int = 256,
        prefill_tokens: int = 1024,
        prefix_bytes: int = 256 << 20,
        cache_dtype: torch.dtype | None = None,
        library: Library | None = None,
        lora: LoRABank | None = None,
        adapter_bytes: int = 512 << 20,
        kv_bytes: int | None = None,
        operations: Operations | None = None,
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
        self._lora = lora or LoRABank.for_model(
            model, places=slots + (prefill_slots or slots), library=library
        )
        self._slots = memory.settle(
            model.config,
            slots=slots,
            beside=prefill_slots,
            length=context,
            like=weight,
            dtype=cache_dtype,
            asked=kv_bytes,
            # The copies of prompts that several continuations share are bounded like prefixes.
            kept=2 * prefix_bytes + adapter_bytes + self._lora.limit(adapter_bytes),
            rows=max(prefill_tokens, step_tokens),
            token_major=True if operations is not None else None,
        )
        self._vocabulary = tokenizer
        self._threads = threads
        self._lora.attach(model)
        self._runner = Runner(model, self._slots, tokenizer.size, library, self._lora, operations)
        self._adapters = AdapterPool(
            AdapterReader.for_model(model, self._info, self._lora), adapter_bytes
        )
        self._prefixes = PrefixCache(prefix_bytes, serves=self._adapters.serves)
        self._events = Events()
        self._scheduler = Scheduler(
            self._slots,
            self._prefixes,
            step_tokens=step_tokens,
            prefill_tokens=prefill_tokens,
            events=self._events,
        )
        self._preparer = Preparer(tokenizer, context, self._adapters)
        self._statistics = Statistics()
        self._baselines = Baselines(self._scheduler, context)
        self._sharing = Sharing(self._slots, self._prefixes, self._scheduler, prefix_bytes)
        self._outcomes = Outcomes(self._scheduler, self._baselines, self._statistics, self._events)
        self._reader = Reader(self._runner, self._outcomes, self._statistics, self._events)
        self._deadlines = Deadlines()
        self._failed_steps = 0
        self._intake = Intake()
        self._thread = threading.Thread(target=self._run, name="gptflow-engine", daemon=True)
        self._thread.start()

    @property
    def model(self) -> ModelInfo:
        return self._info

    @property
    def healthy(self) -> bool:
        """False once it was closed or has crashed: every request fails from then on."""
        return self._intake.stopped is None and self._thread.is_alive()

    def submit(self, request: Request) -> Future[Raw]:
        """Queue a request; it is tokenised here, in the caller's thread.

        The future's result is the raw answer of the request's head. Its exception is a
        `GPTFlowError`; `JobTimeout` if the deadline passed first.
        """
        pending: Pending | None = None
        try:
            deadlines.check(request)
            pending = self._preparer.prepare(request)
            self._intake.put(pending)
        except Exception as error:  # noqa: BLE001  the future carries it
            future: Future[Raw] = Future() if pending is None else pending.future
            fail(future, told(error, "preparing", request.id))
            return future
        return pending.future

    def cancel(self, request_id: str) -> bool:
        """Stop a request wherever it is; its future is cancelled. False if it had ended."""
        return self._intake.cancel(request_id)

    def count_tokens(self, prompt: RenderedPrompt) -> int:
        """How many tokens the prompt takes, chat format included."""
        return len(self._vocabulary.encode(prompt))

    def load_adapter(self, alias: str, folder: str | Path) -> AdapterInfo:
        """Let requests name the adapter in a folder; see `gptflow.adapter` for what is in it.

        An alias that stands for another one changes over: requests that were submitted
        before are answered by the version that they began with. The folder must stay where
        it is: idle adapters are dropped when memory runs out, and read again when needed.

        Raises:
            AdapterNotFound: there is no adapter in the folder.
            AdapterCorrupt: a file is missing, malformed or altered.
            AdapterMismatch: it was made for another model, or does what is not served.
            AdapterTooLarge: it alone takes more than all may take together.
            AdapterMemoryFull: adapters in use leave no room for it.
        """
        info, retired = self._adapters.load(alias, folder)
        if retired:
            self._intake.retire(retired)
        return info

    def unload_adapter(self, alias: str) -> None:
        """Forget an adapter, and free what was computed with it. Requests that use it go on.

        Raises:
            AdapterNotFound: there is no such alias.
        """
        if retired := self._adapters.unload(alias):
            self._intake.retire(retired)

    def adapters(self) -> Mapping[str, AdapterInfo]:
        """The adapters that requests can name, by alias."""
        return self._adapters.infos()

    @property
    def projections(self) -> Mapping[str, Projection]:
        """The layers that LoRA adapters can add to, by module name."""
        return {name: target.projection for name, target in self._lora.targets.items()}

    def stats(self) -> Mapping[str, Any]:
        """How the engine is doing, for JSON. Times are in milliseconds.

        The counters and histograms of `Statistics`, and of this moment or since the start:

            running, waiting      sequences with and without a slot
            waiting_by_class      the latter, by class
            slots, slots_used     places in the key-value cache for sequences that decode
            prefill_slots, prefill_slots_used
                                  and for those that only read a prompt
            kv_tokens, kv_bytes   what the running sequences hold there now
            kv_tokens_reserved    what they may come to hold, in whole pages of memory
            kv_tokens_limit       what there is room for
            prefixes, prefix_hits, prefix_bytes
                                  the prefix cache: entries, uses since the start, size
            adapters, adapters_resident, adapter_bytes
                                  that can be named, those in memory, what they take
            adapter_stack_bytes   and, besides, copies of their matrices side by side
            adapter_evictions, adapter_reloads
                                  idle ones dropped for want of room, and read again
            baselines             content-free scores at hand or under way
            preemptions           slots taken from less urgent sequences since the start
            model, dtype, device  what runs where

        Over the last 1,024 measurements, each as `NAME_p50` and `NAME_p99`:

            step_ms               one step
            answer_ms             from submitting a request to its answer, all heads
            first_token_ms        from submitting it to its first token
            further_token_ms      between two tokens of a continuation, its mean
        """
        values = gauges(self._scheduler, self._slots, self._prefixes)
        values["waiting"] += self._intake.arrived
        return {
            **values,
            **self._adapters.stats(),
            "adapter_stack_bytes": self._lora.nbytes,
            "baselines": len(self._baselines),
            "model": self._info.id,
            "dtype": self._info.dtype,
            "device": self._info.device,
            **self._statistics.as_dict(),
        }

    def events(self) -> list[dict[str, Any]]:
        """The last 1,024 events, oldest first, for JSON; see `gptflow.engine.events.Event`."""
        return self._events.as_dicts()

    def trace(self) -> Future[dict[str, Any]]:
        """What the next step is made of and where its time goes, for JSON. Nobody's words.

        The future's result holds `at` (Unix time), `step` (its number), `rows`, `failed`
        (the name of the exception, or None), `chunks` (requests, kind, head, class, slot,
        rows `start` to `stop` of the sequence, how many were `cached`) and `phases_ms`:
        `plan`, `forward`, `share` (copying prefixes), `heads`, `sampling`, `end`. It waits
        until there is something to do; `EngineStopped` if there never will be.
        """
        return self._intake.trace()

    def close(self) -> None:
        """Stop. Requests in flight fail with `EngineStopped`; so do later ones."""
        self._intake.stop(EngineStopped("The engine was closed."))
        # A callback may close the engine; the engine's thread waits for callbacks to end.
        if not threading.current_thread().name.startswith("gptflow-"):
            self._thread.join()

    # What follows runs on the engine's thread.

    def _run(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                self._runner.prepare()
                while self._gather():
                    self._step()
        except Exception as error:
            log.exception("the engine has crashed")
            self._intake.stop(EngineStopped(f"The engine crashed: {type(error).__name__}."))
        self._lora.detach()
        self._outcomes.close()  # answers that are complete still arrive
        reason = self._intake.stopped
        assert reason is not None
        for future in self._intake.left():
            fail(future, reason)

    def _gather(self) -> bool:
        """Wait for something to do and take in what has changed; False to stop."""
        taken = self._intake.take(lambda: self._scheduler.busy)
        if taken is None:
            return False
        for lora in taken.retired:
            self._prefixes.drop(lora)
            self._baselines.retire(lora)
            self._lora.forget(lora)
        for pending in taken.arrived:
            try:
                self._accept(pending)
            except Exception as error:  # noqa: BLE001  the request's future carries it
                self._outcomes.fail(pending, told(error, "accepting", pending.request.id))
        for pending in taken.cancelled:
            self._outcomes.cancel(pending)
        for pending in self._deadlines.passed(time.time()):
            late = JobTimeout("The deadline passed before the answer was complete.")
            self._outcomes.fail(pending, late)
        return True

    def _accept(self, pending: Pending) -> None:
        if pending.future.cancelled():
            return
        request = pending.request
        self._statistics.requests += 1
        self._deadlines.add(pending)
        for sequence in pending.sequences:
            sequence.owners[pending] = None
            sequence.share = (request.tenant, request.plugin)
            if request.deadline is not None:
                sequence.deadline = request.deadline
        self._baselines.join(pending)
        pending.open += len(pending.sequences)
        # The other samples of a request follow when the first one has filled its slot.
        first = pending.sequences[0]
        if first.ended:  # a grammar that admits one text only
            if isinstance(first, Decoding):
                self._outcomes.emit(first)
            self._outcomes.end(first)
        else:
            self._scheduler.add(first)

    def _step(self) -> None:
        phases = Phases()
        with phases("plan"):
            chunks = self._scheduler.plan()
        for sequence, error in self._scheduler.take_refused():
            self._outcomes.abandon(sequence, error)
        if not chunks:  # all that was waiting has just been dropped
            return
        asked = self._intake.take_traces()
        trace = Trace(chunks, phases) if asked else None
        failed: str | None = None
        try:
            hidden = self._forward(chunks, phases)
        except Exception as error:
            failed = type(error).__name__
            log.exception("a step of the model has failed")
            if not self._compute_apart(chunks, phases, failed) and not self._works():
                self._failed_steps += 1
                if self._failed_steps == _FAILED_STEPS:
                    raise
            else:
                self._failed_steps = 0
        else:
            if self._read(chunks, hidden, phases):
                self._failed_steps = 0
        finally:
            if trace is not None:
                made = trace.as_dict(step=self._statistics.steps, failed=failed)
                for future in asked:
                    self._outcomes.later(succeed, future, made)

    def _compute_apart(self, chunks: list[Chunk], phases: Phases, failed: str) -> bool:
        """Run the sequences of a step that failed one by one; False if all of them fail."""
        worked = False
        for chunk in chunks:
            try:
                # What failed alone need not be tried again. What failed with others has
                # written nothing that it would not write again.
                hidden = self._forward([chunk], phases) if len(chunks) > 1 else None
            except Exception as error:  # noqa: BLE001  the request's future carries its name
                failed, hidden = type(error).__name__, None
            if hidden is None:
                failure = StepFailed(f"The model failed on a step of this request: {failed}.")
                self._outcomes.abandon(chunk.sequence, failure)
            else:
                worked |= self._read([chunk], hidden, phases)
        return worked

    def _works(self) -> bool:
        """Whether the model computes one token that is nobody's. Some slot is free."""
        probe = Sequence([0])
        probe.slot = self._slots.take(1, decodes=self._slots.free > 0)
        try:
            self._runner.forward([Chunk(probe, 0, 1)])
        except Exception:
            log.exception("the model fails on anything")
            return False
        finally:
            self._slots.release(probe.slot, used=1, wipe=True)
        return True

    def _forward(self, chunks: list[Chunk], phases: Phases) -> torch.Tensor:
        with phases("forward"):
            hidden = self._runner.forward(chunks)
            for chunk in chunks:
                chunk.sequence.done = chunk.stop
        return hidden

    def _read(self, chunks: list[Chunk], hidden: torch.Tensor, phases: Phases) -> bool:
        """Give each sequence what its head reads; False if that failed for all of them."""
        try:
            self._take(chunks, hidden, phases)
        except Exception as error:
            self._failed_steps += 1
            if self._failed_steps == _FAILED_STEPS:
                raise
            # Somebody may have got a token and somebody not: no sequence can be gone on with.
            log.exception("reading a step of the model has failed")
            failure = StepFailed(f"A step of the model could not be read: {type(error).__name__}.")
            for chunk in chunks:
                if chunk.sequence.slot is not None:
                    self._outcomes.abandon(chunk.sequence, failure)
            return False
        return True

    def _take(self, chunks: list[Chunk], hidden: torch.Tensor, phases: Phases) -> None:
        running = len(self._scheduler.running)
        occupancy = 1 - self._slots.free / self._slots.slots
        with phases("share"):
            self._sharing.keep(chunks)
        self._reader.read(chunks, hidden, phases)
        with phases("end"):
            for chunk in chunks:
                sequence = chunk.sequence
                if sequence.slot is not None and sequence.ended:
                    with self._outcomes.alone(sequence):
                        self._outcomes.end(sequence)
        self._statistics.step(phases, rows=len(hidden), running=running, occupancy=occupancy)
