from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gptflow.queue.batching import Batcher
from gptflow.queue.scripts import Call, Name

pytestmark = pytest.mark.timeout(30)  # a caller that nobody answers waits for ever


class Server:
    """Answers each call with its name, or fails all of a round trip."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def run_all(self, calls: Sequence[Call]) -> list[Any]:
        if self.error is not None:
            raise self.error
        return [call.name for call in calls]


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def batcher(server: Server) -> Iterator[Batcher]:
    made = Batcher(server.run_all)
    yield made
    made.close()


def test_each_caller_gets_the_reply_to_its_call(batcher: Batcher) -> None:
    names: tuple[Name, ...] = ("claim", "done", "release") * 50
    with ThreadPoolExecutor(16) as pool:
        replies = pool.map(lambda name: batcher.run(Call(name, (), ())), names)
        assert tuple(replies) == names


@pytest.mark.parametrize("error", [OSError("gone"), KeyError("odd"), ValueError("odder")])
def test_whatever_goes_wrong_is_told_and_the_next_call_is_made(
    batcher: Batcher, server: Server, error: Exception
) -> None:
    server.error = error
    with pytest.raises(type(error)):
        batcher.run(Call("claim", (), ()))
    server.error = None
    assert batcher.run(Call("done", (), ())) == "done"
