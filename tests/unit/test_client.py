"""The client: what it refuses before it sends, and what it sends."""

import dataclasses
import math

import pytest
from pydantic import BaseModel

from gptflow import config
from gptflow.client import ITEMS_PER_MESSAGE, Client, split_row
from gptflow.errors import ConfigError, InvalidInput
from gptflow.plugins import Registry
from gptflow.testing import ScriptedEngine
from gptflow.transport import connect


class Outbox:
    """A transport that only keeps what it is given."""

    def __init__(self):
        self.sent = []
        self.batches = []
        self.sealed = {}
        self.cancelled = []
        self.closed = False

    def submit(self, envelope):
        self.sent.append(envelope)
        return envelope.id

    def open_batch(self, record):
        self.batches.append((record, []))

    def add_to_batch(self, batch_id, chunks):
        self.batches[-1][1].extend(chunks)

    def seal_batch(self, batch_id, total):
        self.sealed[batch_id] = total

    def cancel(self, batch_id):
        self.cancelled.append(batch_id)
        return True

    def close(self):
        self.closed = True


@pytest.fixture
def outbox(monkeypatch):
    outbox = Outbox()
    monkeypatch.setattr("gptflow.client.connect", lambda settings, **inside: outbox)
    return outbox


@pytest.fixture
def client(outbox):
    return Client("memory://")


def test_a_job_travels_with_its_options(client, outbox):
    job = client.submit(
        "a.b", {"text": "x"}, key="k", tenant="acme", job_class="interactive", seed=3, stream=True
    )
    [envelope] = outbox.sent
    assert job.id == envelope.id
    assert envelope.to_wire() == {
        "v": 1,
        "id": job.id,
        "task": "a.b",
        "input": {"text": "x"},
        "key": "k",
        "tenant": "acme",
        "class": "interactive",
        "seed": 3,
        "stream": True,
    }


def test_a_timeout_becomes_a_deadline_on_the_clock(client, outbox, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1000.0)
    client.submit("a.b", "x", timeout=30)
    assert outbox.sent[0].deadline == 1030.0


class Model(BaseModel):
    text: str


@dataclasses.dataclass
class Record:
    text: str


@pytest.mark.parametrize("given", [Model(text="x"), Record("x"), {"text": "x"}])
def test_an_input_may_be_a_model_or_a_record(client, outbox, given):
    client.submit("a.b", given)
    assert outbox.sent[0].input == {"text": "x"}


def circular():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"input": None}, "no input"),
        ({"input": object()}, "not JSON"),
        ({"input": b"\xff"}, "not JSON"),
        ({"input": circular()}, "not JSON"),
        ({"tenant": "two words"}, "tenant"),
        ({"job_class": "urgent"}, "class"),
        ({"seed": -1}, "seed"),
        ({"key": "k" * 300}, "key"),
        ({"task": "t" * 200}, "task"),
        ({"timeout": math.nan}, "timeout must be a finite number of seconds"),
        ({"timeout": math.inf}, "timeout must be a finite number of seconds"),
    ],
)
def test_what_cannot_be_sent_is_refused_here(client, outbox, arguments, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        client.submit(**({"task": "a.b", "input": "x"} | arguments))
    assert outbox.sent == []


def test_a_batch_travels_in_messages_of_many_rows(client, outbox):
    rows = [{"id": f"row-{n}", "text": str(n)} for n in range(ITEMS_PER_MESSAGE + 1)]
    batch = client.submit_many("a.b", iter(rows), tenant="acme", seed=1)
    [(record, chunks)] = outbox.batches
    assert (record.id, record.task, record.tenant) == (batch.id, "a.b", "acme")
    assert outbox.sealed == {batch.id: ITEMS_PER_MESSAGE + 1}
    assert [len(chunk.items) for chunk in chunks] == [ITEMS_PER_MESSAGE, 1]
    assert {(chunk.batch, chunk.tenant, chunk.seed) for chunk in chunks} == {(batch.id, "acme", 1)}
    assert {chunk.job_class for chunk in chunks} == {"batch"}
    last = chunks[1].items[0]
    assert (last.index, last.custom_id) == (ITEMS_PER_MESSAGE, f"row-{ITEMS_PER_MESSAGE}")
    assert last.input == {"text": str(ITEMS_PER_MESSAGE)}


def test_a_batch_with_a_row_that_is_not_json_is_refused_whole(client, outbox):
    with pytest.raises(InvalidInput, match="not JSON"):
        client.submit_many("a.b", ["fine", object()])
    with pytest.raises(InvalidInput, match="custom_id"):
        client.submit_many("a.b", [{"id": "x" * 300, "text": "y"}])
    assert outbox.batches == []


@pytest.mark.parametrize(
    ("row", "split"),
    [
        ("text", ("7", "text")),
        ({"text": "x"}, ("7", {"text": "x"})),
        ({"id": 5, "text": "x"}, ("5", {"text": "x"})),
        ({"custom_id": "c", "input": "x"}, ("c", "x")),
        (["x"], ("7", ["x"])),
    ],
)
def test_a_row_is_an_input_with_or_without_an_id(row, split):
    assert split_row(row, "7") == split


def test_a_client_that_is_left_is_closed(client, outbox):
    with client as entered:
        assert entered is client
        assert client.transport is outbox
    assert outbox.closed


def test_a_url_beats_the_settings_that_come_with_it(outbox):
    settings = config.load(redis_url="redis://one", app="mine")
    client = Client("redis://two", settings=settings)
    assert (client.settings.broker_url, client.settings.app) == ("redis://two", "mine")
    assert Client(settings=settings).settings is settings


def test_without_a_url_there_is_nothing_to_connect_to():
    with pytest.raises(ConfigError, match="No Redis URL") as caught:
        connect(config.load())
    assert "GPTFLOW_REDIS_URL" in caught.value.hint


def test_a_scheme_that_is_unknown_is_answered_with_those_that_are_known():
    with pytest.raises(ConfigError, match="'amqp'") as caught:
        connect(config.load(redis_url="amqp://host"))
    assert "redis://" in caught.value.hint
    assert "memory://" in caught.value.hint


@pytest.mark.parametrize("inside", [{"engine": ScriptedEngine()}, {"registry": Registry()}])
def test_only_a_worker_inside_this_process_can_be_given_its_parts(inside):
    with pytest.raises(ConfigError, match="brings its own"):
        Client("redis://host", **inside)
