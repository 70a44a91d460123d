"""When the watchdog bites."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gptflow.queue.watchdog import EXIT_CODE, Watchdog

Make = Callable[[Callable[[], dict[str, Any]]], Any]


class Dog(Watchdog):
    def __init__(self, stats: Callable[[], dict[str, Any]]) -> None:
        self.bitten = threading.Event()
        self.code: int | None = None
        super().__init__(stats, seconds=0.3, end=self.bite)

    def bite(self, code: int) -> None:
        self.code = code
        self.bitten.set()


@pytest.fixture
def dog() -> Iterator[Callable[..., Dog]]:
    dogs: list[Dog] = []

    def start(stats: Callable[[], dict[str, Any]]) -> Dog:
        dogs.append(Dog(stats))
        dogs[-1].start()
        return dogs[-1]

    yield start
    for each in dogs:
        each.stop()


def test_an_engine_that_has_work_and_does_not_move_ends_the_process(
    dog: Callable[..., Dog], capfd: pytest.CaptureFixture[str]
) -> None:
    watchdog = dog(lambda: {"steps": 7, "running": 1})
    assert watchdog.bitten.wait(10)
    assert watchdog.code == EXIT_CODE == 75
    assert watchdog.stalled > 0.3
    assert "Thread" in capfd.readouterr().err  # where each thread stands


@pytest.mark.parametrize(
    "stats",
    [{"steps": 7, "running": 0, "waiting": 0}, {"running": 3, "waiting": 2}],
    ids=["idle", "an engine elsewhere"],
)
def test_it_is_patient_with(dog: Callable[..., Dog], stats: dict[str, Any]) -> None:
    watchdog = dog(lambda: stats)
    assert not watchdog.bitten.wait(1.0)
    assert watchdog.stalled == 0


def test_an_engine_that_moves_is_left_alone(dog: Callable[..., Dog]) -> None:
    steps = iter(range(10**6))
    watchdog = dog(lambda: {"steps": next(steps), "running": 1})
    assert not watchdog.bitten.wait(1.0)


def test_counters_that_break_do_not_end_the_watch(dog: Callable[..., Dog]) -> None:
    looks = iter(range(10**6))

    def stats() -> dict[str, Any]:
        if next(looks) < 3:
            raise ValueError
        return {"steps": 7, "waiting": 1}

    assert dog(stats).bitten.wait(10)


def test_a_process_that_was_frozen_is_not_taken_for_one_that_hangs(
    dog: Callable[..., Dog], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, frozen = time.monotonic, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: real() + frozen)
    looks = 0
    seen = threading.Event()

    def stats() -> dict[str, Any]:
        nonlocal looks, frozen
        looks += 1
        if looks == 3:
            frozen = 45.0  # the clock went on, and nothing else
        if looks == 5:
            seen.set()
        return {"steps": 7 if looks < 6 else looks, "running": 1}

    watchdog = dog(stats)
    assert seen.wait(10)
    assert not watchdog.bitten.wait(0.2)
