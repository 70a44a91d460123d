"""In which order jobs are rung for, and when none is accepted any more."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from gptflow import config
from gptflow.envelope import Envelope, Item, new_id
from gptflow.errors import InvalidInput, QueueFull
from gptflow.queue.embedded import EmbeddedServer
from gptflow.queue.ledger import Claim
from gptflow.queue.payload import pack
from gptflow.queue.redis_ledger import RedisLedger
from gptflow.queue.redis_store import RedisStore


class Line:
    """The queue of an application, without workers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.store = RedisStore(url, f"line-{new_id()[-12:]}", 60)
        self.ledger = RedisLedger(self.store, lease=5, dead_ttl=60)

    def close(self) -> None:
        self.ledger.close()
        self.store.close()

    def policy(self, **settings: Any) -> None:
        self.ledger.set_policy(config.load(redis_url=self.url, **settings))

    def enqueue(self, task: str = "p.task", rows: int = 0, **fields: Any) -> str:
        if rows:
            items = tuple(Item(index=n, custom_id=str(n), input=n) for n in range(rows))
            envelope = Envelope(task=task, items=items, batch=new_id("batch"), **fields)
        else:
            envelope = Envelope(task=task, input={"n": 1}, **fields)
        return self.store.submit(pack(envelope, reference="", inline=100_000, limit=100_000))

    def ring(self, credit: int = 1, reserve: int = 0) -> list[str]:
        """The ids of the jobs that are rung for, each taken at once."""
        self.ledger.feed(credit, reserve)
        rung = []
        for job_class in ("interactive", "standard", "batch"):
            queue = self.store.keys.queue(job_class)
            while (message := self.store.client.rpop(queue)) is not None:
                ((job_id,), _, _) = json.loads(json.loads(message)["body"])
                assert isinstance(self.ledger.claim(job_id, "w", 1), Claim)
                rung.append(job_id)
        return rung

    def serve(self, times: int, by: dict[str, str]) -> Counter[str]:
        """Ring for one job after the other, and count them by what they are."""
        return Counter(by[job_id] for _ in range(times) for job_id in self.ring())


@pytest.fixture
def line(server: EmbeddedServer) -> Iterator[Line]:
    line = Line(server.url)
    yield line
    line.close()


def test_an_interactive_job_overtakes_all_that_wait(line: Line) -> None:
    for _ in range(50):
        line.enqueue()
    urgent = line.enqueue(job_class="interactive")
    assert line.ring() == [urgent]


def test_the_earliest_deadline_goes_first(line: Line) -> None:
    now = time.time()
    late = line.enqueue(deadline=now + 100)
    early = line.enqueue(deadline=now + 50)
    some_day = line.enqueue()
    assert [job for _ in range(3) for job in line.ring()] == [early, late, some_day]


def test_a_tenant_that_floods_the_queue_gets_its_share_and_no_more(line: Line) -> None:
    by = {line.enqueue(tenant="loud"): "loud" for _ in range(300)}
    for name in ("a", "b", "c", "d"):
        by |= {line.enqueue(tenant=name): name for _ in range(30)}
    assert line.serve(100, by) == {"loud": 20, "a": 20, "b": 20, "c": 20, "d": 20}


def test_a_tenant_of_weight_two_is_served_twice_as_much(line: Line) -> None:
    line.policy(tenant_weights={"big": 2})
    by = {line.enqueue(tenant="big"): "big" for _ in range(60)}
    by |= {line.enqueue(tenant="small"): "small" for _ in range(60)}
    served = line.serve(60, by)
    assert abs(served["big"] - 40) <= 1


def test_many_plugins_are_no_more_than_one_tenant(line: Line) -> None:
    by = {line.enqueue(f"p{n % 10}.task", tenant="many"): "many" for n in range(100)}
    by |= {line.enqueue("p.task", tenant="one"): "one" for _ in range(100)}
    served = line.serve(60, by)
    assert abs(served["many"] - 30) <= 1


def test_a_tenants_plugins_share_evenly(line: Line) -> None:
    by = {line.enqueue("loud.task"): "loud" for _ in range(100)}
    by |= {line.enqueue("calm.task"): "calm" for _ in range(30)}
    served = line.serve(40, by)
    assert abs(served["calm"] - 20) <= 1


def test_who_was_away_comes_back_without_credit(line: Line) -> None:
    by = {line.enqueue(tenant="steady"): "steady" for _ in range(200)}
    line.serve(100, by)
    by |= {line.enqueue(tenant="back"): "back" for _ in range(100)}
    served = line.serve(40, by)
    assert abs(served["back"] - 20) <= 1


def test_one_at_a_time_is_no_way_to_the_front(line: Line) -> None:
    by = {line.enqueue(tenant="z"): "z" for _ in range(100)}
    served: Counter[str] = Counter()
    for _ in range(40):  # whoever is served enqueues the next one at once
        by[line.enqueue(tenant="a")] = "a"
        served += line.serve(1, by)
    assert abs(served["z"] - 20) <= 2


def test_rows_count_and_not_messages(line: Line) -> None:
    by = {line.enqueue(rows=20, tenant="batches"): "batches" for _ in range(20)}
    by |= {line.enqueue(rows=1, tenant="rows"): "rows" for _ in range(100)}
    served = line.serve(44, by)
    assert served["rows"] >= 19 * (served["batches"] - 1)


def test_a_class_that_others_overtake_gets_what_it_is_owed(line: Line) -> None:
    by = {}
    for job_class in ("interactive", "standard", "batch"):
        by |= {line.enqueue(job_class=job_class): job_class for _ in range(100)}
    served = line.serve(80, by)
    assert served["batch"] >= 9
    assert served["standard"] >= 18
    assert served["interactive"] >= 48


def test_a_message_of_many_rows_pays_for_all_of_them(line: Line) -> None:
    by = {line.enqueue(): "standard" for _ in range(500)}
    by |= {line.enqueue(rows=32, job_class="batch"): "batch" for _ in range(5)}
    served = line.serve(460, by)
    rows = 32 * served["batch"]
    assert 0 < rows <= 0.2 * (rows + served["standard"])


def test_some_room_is_kept_for_interactive_jobs(line: Line) -> None:
    for _ in range(20):
        line.enqueue()
    assert len(line.ring(credit=8, reserve=2)) == 6
    assert line.ring(credit=2, reserve=2) == []
    urgent = line.enqueue(job_class="interactive")
    assert line.ring(credit=2, reserve=2) == [urgent]


def test_what_was_rung_for_counts_against_the_room_of_all_workers(line: Line) -> None:
    for _ in range(20):
        line.enqueue()
    assert line.ledger.feed(8, 0).jobs == 8
    assert line.ledger.feed(8, 0).jobs == 0
    assert line.ledger.feed(12, 0).jobs == 4


def test_a_full_class_is_refused_with_the_time_to_come_back(line: Line) -> None:
    line.policy(limit_standard=3)
    for _ in range(3):
        line.enqueue()
    with pytest.raises(QueueFull, match="Too many standard jobs wait") as caught:
        line.enqueue()
    assert 0.5 <= caught.value.retry_after <= 60
    line.enqueue(job_class="interactive")
    line.ring(credit=4)
    line.enqueue()


def test_a_full_tenant_is_refused_and_the_others_are_not(line: Line) -> None:
    line.policy(limit_tenant=2)
    line.enqueue(tenant="a")
    line.enqueue(tenant="a")
    with pytest.raises(QueueFull, match="of tenant 'a'"):
        line.enqueue(tenant="a")
    line.enqueue(tenant="b")


def test_the_same_key_is_accepted_though_the_queue_is_full(line: Line) -> None:
    line.policy(limit_standard=1)
    first = line.enqueue(key="k")
    assert line.enqueue(key="k") == first


@pytest.mark.parametrize(
    ("fields", "what"),
    [({"id": "job_../../x"}, "id"), ({"tenant": "a b"}, "tenant"), ({"task": "a\nb"}, "task")],
)
def test_the_script_checks_what_other_languages_send(
    line: Line, fields: dict[str, str], what: str
) -> None:
    envelope = Envelope(task="p.task", input=1)
    packed = pack(envelope.model_copy(update=fields), reference="", inline=1000, limit=1000)
    with pytest.raises(InvalidInput, match=f"malformed {what}"):
        line.store.submit(packed)
    assert line.store.jobs(None, 10) == []


def test_a_doorbell_holds_an_id_and_nothing_of_the_input(line: Line) -> None:
    job_id = line.enqueue()
    line.ledger.feed(1, 0)
    message = json.loads(line.store.client.rpop(line.store.keys.queue("standard")))
    assert json.loads(message["body"])[0] == [job_id]
    assert message["headers"]["shadow"] == "p.task"
    assert message["headers"]["argsrepr"] == f"('{job_id}',)"
