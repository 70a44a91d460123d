"""The engine around the heads: cancelling, deadlines, failures, counts, closing."""

import json
import logging
import threading
import time
from concurrent.futures import CancelledError

import pytest

from gptflow.engine.openai import connect
from gptflow.errors import (
    ConfigError,
    EngineError,
    EngineStopped,
    InputTooLong,
    InvalidGrammar,
    JobTimeout,
    ServerUnavailable,
    StepFailed,
    UnsupportedHead,
)
from gptflow.heads import Generate, Json, Tag
from gptflow.prompt import RenderedPrompt
from gptflow.request import Request

SECONDS = 30
COMPLETIONS = "/v1/completions"
SECRET = "the user's own words"
DONE = {
    "choices": [{"index": 0, "text": "done", "finish_reason": "length"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}


def generate(text="a b c", **options):
    head = options.pop("head", Generate(max_tokens=1))
    return Request(prompt=RenderedPrompt.plain(text), head=head, **options)


def refuse(status, message="no", **headers):
    error = {"error": {"message": f"{message}: {SECRET}", "type": "SomeError"}}
    return {"status": status, "answer": json.dumps(error), "headers": headers}


def answering(*answers):
    """A script that gives one answer after another, and `DONE` from then on."""
    left = list(answers)

    def script(request):
        if request.path != COMPLETIONS:
            return None
        return left.pop(0) if left else {"answer": json.dumps(DONE)}

    return script


class Held:
    """A script that begins an answer and holds it until the client hangs up."""

    def __init__(self, *, streams):
        self.streams = streams
        self.began = threading.Event()
        self.hung_up = threading.Event()

    def __call__(self, request):
        if request.path != COMPLETIONS:
            return None
        if self.streams:
            request.handler.begin(200, "text/event-stream", {})
            request.handler.event({"choices": [{"index": 0, "text": "be"}]})
        self.began.set()
        if request.handler.wait_for_hang_up():
            self.hung_up.set()
        return "answered"


@pytest.fixture
def remote(make_remote):
    return make_remote()


@pytest.mark.parametrize("streams", [True, False], ids=["streaming", "waiting"])
def test_cancelling_hangs_up(remote, streams):
    engine, server = remote
    server.script = held = Held(streams=streams)
    request = generate(on_delta=(lambda _: None) if streams else None)
    future = engine.submit(request)
    assert held.began.wait(SECONDS)
    assert engine.cancel(request.id)
    with pytest.raises(CancelledError):
        future.result(SECONDS)
    assert held.hung_up.wait(SECONDS)
    assert not engine.cancel(request.id)


def test_a_deadline_hangs_up(remote):
    engine, server = remote
    server.script = held = Held(streams=False)
    future = engine.submit(generate(deadline=time.time() + 0.3))
    with pytest.raises(JobTimeout):
        future.result(SECONDS)
    assert held.hung_up.wait(SECONDS)


def test_closing_fails_what_is_in_flight_and_what_comes_later(remote):
    engine, server = remote
    server.script = held = Held(streams=True)
    future = engine.submit(generate(on_delta=lambda _: None))
    assert held.began.wait(SECONDS)
    engine.close()
    with pytest.raises(EngineStopped):
        future.result(SECONDS)
    assert held.hung_up.wait(SECONDS)
    with pytest.raises(EngineStopped):
        engine.submit(generate()).result(SECONDS)
    assert not engine.healthy


def test_a_busy_server_is_asked_again(remote):
    engine, server = remote
    busy = refuse(429, **{"Retry-After": "0"})
    server.script = answering(busy, refuse(503, **{"Retry-After": "0"}))
    assert engine.submit(generate()).result(SECONDS).text == "done"
    assert engine.stats()["http_retries"] == 2


def test_a_server_that_hangs_up_before_it_answers_is_asked_again(remote):
    engine, server = remote
    hung_up = []

    def script(request):
        if request.path == COMPLETIONS and not hung_up:
            hung_up.append(True)
            request.handler.close_connection = True
            return "answered"
        return answering()(request)

    server.script = script
    assert engine.submit(generate()).result(SECONDS).text == "done"


def test_an_answer_that_breaks_off_is_not_asked_for_again(remote):
    engine, server = remote
    pieces = []

    def script(request):
        request.handler.begin(200, "text/event-stream", {})
        request.handler.event({"choices": [{"index": 0, "text": "be"}]})
        return "answered"

    server.script = script
    with pytest.raises(ServerUnavailable) as caught:
        engine.submit(generate(on_delta=pieces.append)).result(SECONDS)
    assert caught.value.retryable
    assert [piece.text for piece in pieces] == ["be"]
    assert len(server.asked(COMPLETIONS)) == 1


def test_a_server_that_says_nothing_is_given_up(make_remote):
    engine, server = make_remote(timeout=0.3)
    server.script = Held(streams=False)
    with pytest.raises(JobTimeout, match="nothing for too long"):
        engine.submit(generate()).result(SECONDS)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (refuse(400), EngineError),
        (refuse(400, "maximum context length is 9"), InputTooLong),
        (refuse(401), ConfigError),
        (refuse(404), EngineError),
        (refuse(500), StepFailed),
        (refuse(501), UnsupportedHead),
        (refuse(302), ConfigError),
        ({"answer": f"<html>{SECRET}"}, EngineError),
        ({"answer": f'["{SECRET}"]'}, EngineError),
        ({"answer": json.dumps({"choices": [{"index": 7, "text": SECRET}]})}, EngineError),
        ({"answer": json.dumps({"choices": []})}, EngineError),
    ],
)
def test_failures_have_a_code_and_quote_nobody(remote, caplog, answer, error):
    engine, server = remote
    server.script = answering(answer)
    caplog.set_level(logging.DEBUG, "gptflow")
    with pytest.raises(error) as caught:
        engine.submit(generate(SECRET)).result(SECONDS)
    assert type(caught.value) is error
    assert SECRET not in f"{caught.value} {caplog.text}"
    assert engine.submit(generate()).result(SECONDS).text == "done"  # the next one fares well
    assert engine.stats()["failed"] == 1


def test_an_error_in_the_middle_of_a_stream_is_raised(remote):
    engine, server = remote

    def script(request):
        request.handler.begin(200, "text/event-stream", {})
        request.handler.event({"error": {"code": 400, "type": "x", "message": "context length"}})
        return "answered"

    server.script = script
    with pytest.raises(InputTooLong):
        engine.submit(generate(on_delta=print)).result(SECONDS)


@pytest.mark.parametrize("schema", [{"type": "strange"}, {"enum": {1, 2}}])
def test_a_malformed_schema_is_refused_before_anybody_is_asked(remote, schema):
    engine, server = remote
    with pytest.raises(InvalidGrammar):
        engine.submit(generate(head=Json(schema=schema))).result(SECONDS)
    assert not server.requests


def test_an_answer_that_does_not_fit_the_schema_is_an_error(remote):
    engine, server = remote
    head = Json(schema={"type": "integer"}, max_tokens=9)
    for text, finish, told in (
        ('"x"', "stop", "does not fit"),
        ("{", "stop", "does not fit"),
        ("12", "length", None),
        ("[", "length", "not complete after 1 tokens"),
    ):
        choice = {"index": 0, "text": text, "finish_reason": finish}
        server.script = answering({"answer": json.dumps(DONE | {"choices": [choice]})})
        future = engine.submit(generate(head=head))
        if told is None:
            assert future.result(SECONDS).value == 12
        else:
            with pytest.raises(EngineError, match=told):
                future.result(SECONDS)


def test_hundreds_of_requests_are_in_flight_at_once_and_no_more_than_allowed(make_remote):
    engine, server = make_remote(parallel=40)
    lock, all_in, go = threading.Lock(), threading.Event(), threading.Event()
    inside, most = 0, 0

    def script(request):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
            if inside == 40:
                all_in.set()
        assert go.wait(SECONDS)
        with lock:
            inside -= 1
        return {"answer": json.dumps(DONE)}

    server.script = script
    futures = [engine.submit(generate(f"number {i}")) for i in range(300)]
    assert all_in.wait(SECONDS)
    stats = engine.stats()
    assert stats["running"] + stats["waiting"] == 300
    assert stats["waiting"] == 260
    go.set()
    assert {future.result(SECONDS).text for future in futures} == {"done"}
    assert most == 40
    assert engine.stats()["tokens_out"] == 300


def test_the_urgent_overtake(make_remote):
    engine, server = make_remote(parallel=1)
    began, go = threading.Event(), threading.Event()

    def script(request):
        began.set()
        assert go.wait(SECONDS)
        return {"answer": json.dumps(DONE)}

    server.script = script
    futures = [engine.submit(generate("first"))]
    assert began.wait(SECONDS)
    futures += [
        engine.submit(generate(job_class, job_class=job_class))
        for job_class in ("batch", "standard", "interactive")
    ]
    while engine.stats()["waiting"] < 3:
        time.sleep(0.01)
    go.set()
    for future in futures:
        future.result(SECONDS)
    asked = [body["prompt"] for body in server.asked(COMPLETIONS)]
    assert asked == ["first", "interactive", "standard", "batch"]


def test_an_adapter_is_asked_for_by_its_name_once_it_is_served(remote):
    engine, server = remote
    models = {
        "data": [
            {"id": "smollm2", "owned_by": "vllm"},
            {"id": "mood", "owned_by": "vllm", "parent": "smollm2"},
        ]
    }

    def script(request):
        return {"answer": json.dumps(models if request.path == "/v1/models" else DONE)}

    server.script = script
    head = Generate(max_tokens=1, adapter="mood")
    assert engine.submit(generate(head=head)).result(SECONDS).text == "done"
    assert server.asked(COMPLETIONS)[0]["model"] == "mood"
    assert engine.stats()["capabilities"]["adapters"] == ["mood"]


def test_heads_that_are_made_of_others_are_refused(remote):
    with pytest.raises(UnsupportedHead, match=r"gptflow\.executor"):
        remote[0].submit(generate(head=Tag(labels=("a", "b")))).result(SECONDS)


def test_a_request_that_is_in_flight_is_not_taken_twice(remote):
    engine, server = remote
    server.script = held = Held(streams=False)
    request = generate()
    future = engine.submit(request)
    assert held.began.wait(SECONDS)
    with pytest.raises(EngineError, match="in flight already"):
        engine.submit(request).result(SECONDS)
    assert future.cancel()
    assert held.hung_up.wait(SECONDS)


def test_a_callback_that_raises_harms_nobody(remote, record):
    def fail(_):
        raise RuntimeError(SECRET)

    future = remote[0].submit(Request(**record.SCENARIO["stream"] | {"on_delta": fail}))
    assert future.result(SECONDS).text


def test_a_closed_engine_can_be_closed_from_a_callback(remote):
    engine, server = remote
    server.script = answering()
    closed = threading.Event()

    def close(_):
        engine.close()
        closed.set()

    engine.submit(generate()).add_done_callback(close)
    assert closed.wait(SECONDS)


def test_tokens_are_counted_by_the_server(remote):
    assert remote[0].count_tokens(RenderedPrompt.plain("The opposite of hot is")) == 5


def test_tokens_are_counted_at_most_once_the_engine_is_closed(remote):
    engine, _ = remote
    engine.close()
    assert engine.count_tokens(RenderedPrompt.plain("abc")) >= 3


def test_a_server_that_is_not_there_is_reported(make_server):
    server = make_server()
    server.shutdown()
    server.server_close()
    with pytest.raises(ServerUnavailable, match="cannot be reached"):
        connect(server.url, wait=0)


def test_a_server_that_is_still_loading_is_waited_for(make_server):
    server = make_server()
    seen = []

    def script(request):
        seen.append(request.path)
        return refuse(503, **{"Retry-After": "0"}) if len(seen) < 9 else None

    server.script = script
    engine = connect(server.url, wait=SECONDS)
    assert engine.model.id == "smollm2"
    engine.close()


def test_a_model_that_is_not_served_is_reported(make_server):
    with pytest.raises(ConfigError, match="smollm2"):
        connect(make_server().url, model="other", wait=0)


def test_something_that_is_no_model_server_is_reported(make_server):
    server = make_server()
    server.script = lambda _: {"answer": "{}"}
    with pytest.raises(ConfigError, match="not a list of models"):
        connect(server.url, wait=0)


def test_the_key_is_sent_and_never_told(make_server, caplog):
    caplog.set_level(logging.DEBUG)
    server = make_server()
    engine = connect(server.url + "/v1", api_key="s3cret", wait=0)
    assert server.requests[0].headers["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in f"{caplog.text} {engine.stats()} {vars(engine)}"
    engine.close()


def test_the_context_is_the_least_of_the_servers_and_the_settings(make_server):
    for wanted, context in ((1000, 1000), (100_000, 2048)):
        engine = connect(make_server().url, context=wanted, wait=0)
        assert engine.model.context == context
        engine.close()


def test_a_prompt_without_room_is_refused_before_it_is_sent(remote):
    engine, server = remote
    request = Request(prompt=(11,) * 2048, head=Generate(max_tokens=1))
    with pytest.raises(InputTooLong, match="2048"):
        engine.submit(request).result(SECONDS)
    assert not server.requests
