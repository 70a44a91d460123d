"""Random loads: every answer as if the request had been alone, and nothing left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import random
import sys
import threading
import time
from collections import deque
from concurrent.futures import wait
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gptflow.engine.lora_weights import LoRAWeights
from gptflow.engine.pending import Pending
from gptflow.engine.sequence import Decoding, Pooling
from gptflow.errors import AdapterMemoryFull
from gptflow.heads import Choose, Embed, Generate, Json, Score
from gptflow.prompt import Message, RenderedPrompt, Segment
from gptflow.request import Request

SCHEMA = {"type": "array", "items": {"enum": ["alpha", "beta", 3]}, "maxItems": 3}
HEADS = {
    "greedy": Generate(max_tokens=6),
    "long": Generate(max_tokens=25),
    "sampled": Generate(max_tokens=8, temperature=1.2, top_p=0.9),
    "several": Generate(max_tokens=4, temperature=1.0, n=3),
    "stop": Generate(max_tokens=12, stop=("e", "th")),
    "json": Json(schema=SCHEMA, max_tokens=40, temperature=0.8),
    "choose": Choose(labels=("good", "quite bad", "neutral")),
    "score": Score(),
    "mean": Embed(),
    "last": Embed(pooling="last"),
}
TEMPLATE = "Answer with one word: positive, negative or neutral. "
BLANK = RenderedPrompt.plain("N/A")


def request_of(kind, words, adapter=None, **more):
    """A request whose answer depends on its kind, its number of words and its adapter only."""
    text = "the dog sleeps on in the warm sun " * 9
    user = Segment(" ".join(text.split()[:words]), trusted=False)
    prompt = RenderedPrompt((Message(None, (Segment(TEMPLATE, trusted=True), user)),))
    baseline = BLANK if words % 2 else None
    head = dataclasses.replace(HEADS[kind], adapter=adapter)
    return Request(prompt=prompt, head=head, baseline=baseline, seed=words, **more)


@pytest.fixture
def adapters(tiny, tmp_path):
    """Folders of adapters, by alias."""
    return {f"a{i}": tiny.write_lora(tmp_path / str(i), seed=i, rank=2) for i in range(6)}


def assert_same(answer, expected):
    assert type(answer) is type(expected)
    assert answer.usage.tokens_in == expected.usage.tokens_in
    assert answer.usage.tokens_out == expected.usage.tokens_out
    if hasattr(answer, "continuations"):
        for ours, theirs in zip(answer.continuations, expected.continuations, strict=True):
            assert (ours.tokens, ours.text, ours.finish) == (
                theirs.tokens, theirs.text, theirs.finish,
            )  # fmt: skip
            assert ours.mean_logprob == pytest.approx(theirs.mean_logprob, abs=1e-4)
    elif hasattr(answer, "vector"):
        assert answer.vector == pytest.approx(expected.vector, abs=1e-5)
    elif hasattr(answer, "values"):
        assert answer.values == pytest.approx(expected.values, abs=2e-4)
    elif hasattr(answer, "scores"):
        assert answer.label == expected.label
        assert answer.scores == pytest.approx(expected.scores, abs=1e-4)
    else:
        assert answer.value == expected.value


def assert_nothing_left(engine):
    stats = engine.stats()
    for name in (
        "running", "waiting", "slots_used", "prefill_slots_used", "kv_tokens",
        "kv_tokens_reserved",
    ):  # fmt: skip
        assert stats[name] == 0, name
    assert len(engine._intake) == 0
    assert engine._sharing.nbytes == 0
    assert all(entry.users == 0 for entry in engine._adapters._entries.values())
    assert not engine._scheduler.busy


class Timeline:
    """Lets things happen before given steps, on the engine's thread; it never sleeps."""

    def __init__(self, engine):
        self._step = engine._step
        self._lock = threading.Lock()
        self._due: deque = deque()
        engine._step = self

    def __call__(self):
        with self._lock:
            if self._due and self._due[0][0] > 0:
                delay, act = self._due.popleft()
                self._due.appendleft((delay - 1, act))
        self.play()
        self._step()

    def play(self, *, now=False):
        """Do what is due; if `now`, the next thing whether it is or not."""
        while True:
            with self._lock:
                if not self._due or (self._due[0][0] > 0 and not now):
                    return
                act = self._due.popleft()[1]
            now = False
            act()

    def run(self, things):
        """Let all happen: pairs of a step, counted from now, and what to do before it."""
        last = 0
        with self._lock:
            for step, act in sorted(things, key=lambda thing: thing[0]):
                self._due.append((step - last, act))
                last = step

    @property
    def over(self):
        return not self._due


jobs = st.tuples(
    st.integers(0, 2),  # steps after the one before
    st.sampled_from(sorted(HEADS)),
    st.integers(1, 30),  # words
    st.sampled_from(["interactive", "standard", "batch"]),
    st.sampled_from("abc"),  # tenant
    st.sampled_from([None, None, None, 0, 1, 3, 6, 10]),  # cancelled so many steps later
    st.sampled_from([None, None, None, 1e3, float("inf"), 0.0]),  # seconds to the deadline
    st.sampled_from([None, None, "a0", "a1", "a2", "a3"]),  # adapter
    st.sampled_from([None, None, None, "a0", "a1"]),  # an adapter that is loaded anew before it
)


def test_answers_do_not_depend_on_who_else_is_there(tiny, make_engine, adapters):
    model = tiny.make_model("llama", "alone")
    alone = make_engine(model=model, slots=1, prefix_bytes=0, prefill_tokens=512)
    known: dict = {}

    def expected(*asked):
        if asked not in known:
            future = alone.submit(request_of(*asked))
            known[asked] = future.exception(60) or future.result()
        return known[asked]

    for alias, folder in adapters.items():
        size = alone.load_adapter(alias, folder).nbytes
    token = alone._slots.bytes_per_token
    engine = make_engine(
        slots=2, step_tokens=24, prefill_tokens=40, kv_bytes=256 * token, adapter_bytes=3 * size
    )
    for alias, folder in adapters.items():
        engine.load_adapter(alias, folder)
    timeline = Timeline(engine)

    def load(alias):
        with contextlib.suppress(AdapterMemoryFull):  # too many are in use
            engine.load_adapter(alias, adapters[alias])

    totals = {"answers": 0}

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(jobs, min_size=3, max_size=24))
    @example(
        [(0, "long", 9, "batch", "a", None, None, None, None)] * 4
        + [(2, "greedy", 5, "interactive", "b", None, None, "a1", "a1")] * 4
    )
    def check(given_jobs):
        futures: dict = {}
        ids = []
        things = []
        step = 0
        for delay, kind, words, job_class, tenant, cancelled, left, adapter, anew in given_jobs:
            request = request_of(
                kind, words, adapter, job_class=job_class, tenant=tenant,
                deadline=None if left is None else time.time() + left,
            )  # fmt: skip
            ids.append(request.id)
            step += delay
            if anew is not None:
                things.append((step, lambda alias=anew: load(alias)))
            things.append((step, lambda r=request: futures.update({r.id: engine.submit(r)})))
            if cancelled is not None:
                things.append((step + cancelled, lambda r=request: engine.cancel(r.id)))
        timeline.run(things)
        while not timeline.over:
            if all(future.done() for future in list(futures.values())):  # no step comes by itself
                timeline.play(now=True)
            assert not wait(list(futures.values()), 60).not_done
        while len(futures) < len(given_jobs):  # the engine's thread is about to submit the last one
            assert not wait(list(futures.values()), 60).not_done
        assert not wait(list(futures.values()), 60).not_done
        for job, id_ in zip(given_jobs, ids, strict=True):
            _, kind, words, _, _, cancelled, left, adapter, _ = job
            future = futures[id_]
            if future.cancelled():
                assert cancelled is not None
                continue
            error = future.exception(0)
            want = expected(kind, words, adapter)
            if error is None:
                assert_same(future.result(), want)
                totals["answers"] += 1
            elif left == 0:
                assert error.code == "GF504"
            else:  # JSON that was not complete in its tokens
                assert str(error) == str(want)
        engine.submit(request_of("mean", 1)).result(30)  # so that all cancelled are dropped
        assert_nothing_left(engine)

    check()
    assert totals["answers"] > 100
    assert engine.stats()["preemptions"] > 0
    assert engine.stats()["adapter_reloads"] > 0


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def alive(kind) -> int:
    gc.collect()
    return sum(issubclass(type(thing), kind) for thing in gc.get_objects())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_thousands_of_requests_leave_nothing_behind(make_engine, adapters, pytestconfig):
    waves = 18 if pytestconfig.getoption("--nightly") else 4
    size = make_engine().load_adapter("a", adapters["a0"]).nbytes
    limit = 4 * size  # two thirds of them
    engine = make_engine(slots=24, step_tokens=256, prefix_bytes=200_000, adapter_bytes=limit)
    for alias, folder in adapters.items():
        engine.load_adapter(alias, folder)
    dice = random.Random(5)
    kinds = [kind for kind in HEADS if kind != "long"]
    before = {kind: alive(kind) for kind in (Pending, Decoding, Pooling)}
    weights = alive(LoRAWeights) - engine.stats()["adapters_resident"]

    def wave(count):
        futures = []
        for _ in range(count):
            kind = dice.choice(kinds)
            request = request_of(
                kind, dice.randint(1, 6), dice.choice([None, None, *adapters]),
                job_class=dice.choice(["interactive", "standard", "batch"]),
                tenant=f"tenant {dice.randrange(300)}",
                plugin=dice.choice("pq"),
                deadline=dice.choice([None, None, time.time() + dice.choice([0.02, 1e4])]),
            )  # fmt: skip
            if kind in ("choose", "score") and dice.random() < 0.5:  # a baseline of its own
                blank = RenderedPrompt.plain(f"N/A {dice.random()}")
                request = Request(
                    prompt=request.prompt, head=request.head, baseline=blank, id=request.id
                )
            futures.append(engine.submit(request))
            if dice.random() < 0.15:
                dice.choice(futures[-40:]).cancel()
            if dice.random() < 0.02:
                alias = dice.choice(list(adapters))
                with contextlib.suppress(AdapterMemoryFull):  # too many are in use
                    engine.load_adapter(alias, adapters[alias])
        assert not wait(futures, 120).not_done
        engine.submit(request_of("mean", 1)).result(60)
        return sum(not f.cancelled() and f.exception() is None for f in futures)

    answers = wave(500) + wave(500)
    gc.collect()
    warm = resident()
    answers += sum(wave(500) for _ in range(waves))
    count = 500 * (2 + waves)
    assert answers > 0.7 * count
    assert_nothing_left(engine)
    stats = engine.stats()
    assert stats["requests"] > 0.8 * count
    assert stats["cancelled"] > 0.01 * count
    assert stats["failures"].keys() <= {"GF504", "GF700"}
    assert stats["prefix_bytes"] <= 200_000
    assert stats["adapter_bytes"] <= limit
    assert stats["adapter_reloads"] > 0.01 * count
    assert stats["baselines"] <= 1024
    assert len(engine._deadlines) < 2500
    for line in engine._scheduler._waiting._lines.values():
        for queue in line.queues.values():
            assert len(queue._queues) <= 2
    engine._outcomes.close()  # what is under way there holds what it works on
    assert {kind: alive(kind) for kind in before} == before
    assert alive(LoRAWeights) == weights + stats["adapters_resident"]
    gc.collect()
    assert resident() - warm < 48 << 20
    assert json.dumps(stats)
