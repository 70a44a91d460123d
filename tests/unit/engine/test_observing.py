"""What the engine tells about itself: statistics, events, the trace of a step."""

from __future__ import annotations

import json
import threading
from concurrent.futures import wait

import pytest

from gptflow.engine.statistics import Window
from gptflow.errors import EngineStopped, InvalidGrammar
from gptflow.heads import Choose, Embed, Generate, Json
from gptflow.prompt import RenderedPrompt
from gptflow.request import Request

WORDS = "The secret word of this user is xylophone."


def ask(ids, new=20, **more):
    return Request(prompt=ids, head=Generate(max_tokens=new), ignore_eos=True, **more)


def test_statistics_of_a_mixed_load(tiny, make_engine):
    engine = make_engine(slots=2)
    requests = [ask(tiny.prompt_ids(20 + i), job_class="batch") for i in range(5)]
    requests.append(Request(prompt=tiny.prompt_ids(9), head=Embed(), job_class="interactive"))
    wait([engine.submit(request) for request in requests], 60)
    stats = engine.stats()
    assert stats["waiting_by_class"] == {"interactive": 0, "standard": 0, "batch": 0}
    assert stats["requests"] == 6
    assert (stats["kv_tokens"], stats["kv_bytes"], stats["kv_tokens_reserved"]) == (0, 0, 0)
    assert stats["kv_tokens_limit"] == (stats["slots"] + stats["prefill_slots"]) * 256
    assert (stats["slots_used"], stats["prefill_slots_used"]) == (0, 0)
    assert 0 < stats["occupancy"] <= 1
    assert stats["rows_per_step"] > 1
    for name in ("step_ms", "answer_ms", "first_token_ms", "further_token_ms"):
        assert 0 < stats[f"{name}_p50"] <= stats[f"{name}_p99"]
    assert stats["first_token_ms_p99"] <= stats["answer_ms_p99"]
    assert json.loads(json.dumps(stats)) == stats


def test_waiting_requests_are_counted_by_class(tiny, make_engine):
    engine = make_engine(slots=1)
    first_step = tiny.Pause(engine)
    first = engine.submit(ask(tiny.prompt_ids(5), 20))
    assert first_step.reached.wait(30)
    classes = ("batch", "batch", "standard")
    rest = [engine.submit(ask(tiny.prompt_ids(6), 2, job_class=c)) for c in classes]
    assert engine.stats()["waiting"] == 4  # none of the last three has been looked at
    second_step = tiny.Pause(engine)
    first_step.release()
    assert second_step.reached.wait(30)
    stats = engine.stats()
    second_step.release()
    assert stats["kv_tokens"] == 5
    assert stats["waiting_by_class"] == {"interactive": 0, "standard": 1, "batch": 2}
    assert (stats["waiting"], stats["running"], stats["slots_used"]) == (3, 1, 1)
    assert not wait([first, *rest], 60).not_done


def test_the_threads_are_called_by_their_names(make_engine):
    engine = make_engine()
    names = []
    future = engine.submit(
        Request(
            prompt=(5, 6), head=Generate(max_tokens=1), ignore_eos=True,
            on_delta=lambda _: names.append(threading.current_thread().name),
        )
    )  # fmt: skip
    assert future.result(30)
    assert engine._thread.name == "gptflow-engine"
    assert engine._thread in threading.enumerate()
    assert all(name.startswith("gptflow-finaliser") for name in names)


def test_failures_and_cancellations_are_counted(tiny, make_engine, monkeypatch):
    engine = make_engine()
    bad = Request(prompt=(5, 6), head=Json(schema={"type": "nonsense"}))
    assert isinstance(engine.submit(bad).exception(30), InvalidGrammar)
    late = ask(tiny.prompt_ids(5), deadline=1.0)
    assert engine.submit(late).exception(30)
    begun = threading.Event()
    gone = engine.submit(ask(tiny.prompt_ids(5), 250, on_delta=lambda _: begun.set()))
    assert begun.wait(30)
    gone.cancel()
    assert engine.submit(ask((5, 6), 1)).result(30)
    stats = engine.stats()
    # What fails before it is accepted, in its caller's thread, is not the engine's failure.
    assert stats["failures"] == {"GF504": 1}
    assert stats["cancelled"] == 1


def test_events_tell_a_requests_story_without_its_words(make_engine):
    engine = make_engine(prefill_tokens=8)
    request = Request(
        prompt=RenderedPrompt.plain(WORDS), head=Generate(max_tokens=3, n=2), ignore_eos=True
    )
    labels = Request(prompt=RenderedPrompt.plain(WORDS), head=Choose(labels=("good", "bad")))
    engine.submit(request).result(30)
    engine.submit(labels).result(30)
    late = Request(prompt=(5, 6), head=Embed(), deadline=1.0)
    engine.submit(late).exception(30)
    events = engine.events()
    story = [(e["kind"], e["sample"]) for e in events if request.id in e["requests"]]
    assert story[:2] == [("admitted", 0), ("first_token", 0)]
    assert sorted(story[2:4]) == [("admitted", 1), ("first_token", 1)]
    assert story[4:] == [("ended", None)]
    assert [e["kind"] for e in events if labels.id in e["requests"]] == ["admitted", "ended"]
    failed = next(e for e in events if late.id in e["requests"])
    assert (failed["kind"], failed["code"]) == ("failed", "GF504")
    assert [e["at"] for e in events] == sorted(e["at"] for e in events)
    assert "xylophone" not in json.dumps(events)


def test_events_are_bounded(make_engine):
    engine = make_engine()
    wait([engine.submit(Request(prompt=(5, 6), head=Embed())) for _ in range(600)], 60)
    assert len(engine.events()) == 1024


def test_the_trace_of_a_step(tiny, make_engine):
    engine = make_engine()
    asked = engine.trace()  # before there is anything to do
    prompt = RenderedPrompt.plain(WORDS)
    request = Request(prompt=prompt, head=Choose(labels=("good", "quite bad")))
    engine.submit(request).result(30)
    trace = asked.result(30)
    assert trace["failed"] is None
    (chunk,) = trace["chunks"]
    tokens = engine.count_tokens(prompt)
    assert chunk == {
        "requests": [request.id], "kind": "prefill", "head": "scoring", "class": "standard",
        "slot": 8, "start": 0, "stop": trace["rows"], "cached": 0, "preempted": 0,
    }  # fmt: skip
    assert trace["rows"] > tokens
    assert trace["phases_ms"].keys() >= {"plan", "forward", "share", "heads", "end"}
    assert all(value >= 0 for value in trace["phases_ms"].values())
    assert "xylophone" not in json.dumps(trace)
    asked = engine.trace()
    engine.submit(ask(tiny.prompt_ids(5), 3)).result(30)
    assert asked.result(30)["phases_ms"]["sampling"] > 0


def test_the_trace_names_the_first_of_many_who_wait_for_the_same(tiny, make_engine):
    engine = make_engine(slots=2)
    pause = tiny.Pause(engine)
    first = engine.submit(ask(tiny.prompt_ids(5), 2))
    assert pause.reached.wait(30)
    blank = RenderedPrompt.plain("Mood of N/A?")
    head = Choose(labels=("good", "bad"))
    requests = [
        Request(prompt=RenderedPrompt.plain(f"Mood of {i}?"), head=head, baseline=blank)
        for i in range(20)
    ]
    futures = [engine.submit(request) for request in requests]
    taken_in = tiny.Pause(engine)
    pause.release()
    assert taken_in.reached.wait(30)
    asked = engine.trace()
    taken_in.release()
    named = [chunk["requests"] for chunk in asked.result(30)["chunks"]]
    assert [request.id for request in requests[:8]] in named
    assert not wait([first, *futures], 60).not_done


def test_the_trace_of_a_step_that_fails(tiny, make_engine, monkeypatch):
    engine = make_engine()

    def broken(chunks):
        raise MemoryError("no more")

    monkeypatch.setattr(engine._runner, "forward", broken)
    asked = engine.trace()
    assert engine.submit(ask(tiny.prompt_ids(5))).exception(30)
    assert asked.result(30)["failed"] == "MemoryError"


def test_a_trace_of_an_engine_that_stops(make_engine):
    engine = make_engine()
    before = engine.trace()
    engine.close()
    for future in (before, engine.trace()):
        assert isinstance(future.exception(30), EngineStopped)


def test_a_trace_may_be_given_up(tiny, make_engine):
    engine = make_engine()
    assert engine.trace().cancel()
    assert engine.submit(ask(tiny.prompt_ids(5), 2)).result(30)


@pytest.mark.parametrize(
    ("values", "median", "last"),
    [((), 0, 0), ((3,), 3, 3), (range(1, 101), 50, 99), (range(5000), 4487, 4989)],
)
def test_percentiles_over_a_bounded_window(values, median, last):
    window = Window()
    for value in values:
        window.add(value / 1000)
    assert round(window.percentile(0.5)) == median
    assert abs(window.percentile(0.99) - last) < 1
