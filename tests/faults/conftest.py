"""A real Valkey and real workers, to be killed; what the tests counted ends pytest's report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from faultbed import keyspace, sizes
from faultbed.broker import Broker
from faultbed.fleet import Fleet, environment
from faultbed.journal import Journal
from faultbed.notes import Notes
from faultbed.proxy import Proxy
from faultbed.sizes import Sizes
from faultbed.stock import Stock
from faultbed.tally import TALLIES
from faultbed.waiting import wait_until

from gptflow import config
from gptflow.config import Settings
from gptflow.queue.embedded import EmbeddedServer
from gptflow.queue.transport import RedisTransport

PLUGIN = Path(__file__).parent / "faultbed" / "plugin"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if TALLIES:
        terminalreporter.section("faults")
        for line in TALLIES:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def size(pytestconfig: pytest.Config) -> Sizes:
    """How much of each fault."""
    return sizes.NIGHTLY if pytestconfig.getoption("--nightly") else sizes.CI


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as running:
        yield running


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that installs the plugin `faults`."""
    folder = tmp_path_factory.mktemp("installed")
    for module in PLUGIN.glob("*.py"):
        (folder / module.name).symlink_to(module)
    info = folder / "gptflow_faults-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gptflow-faults\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gptflow]\nfaults = gptflow_faults\n")
    return folder


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes.txt")


class Bed:
    """A test's application: its settings, journal, notes and workers."""

    def __init__(
        self, url: str, app: str, size: Sizes, notes: Notes, plugin: Path, folder: Path
    ) -> None:
        self.settings: Settings = config.load(redis_url=url, app=app)
        self.notes = notes
        self.journal = Journal(self.settings)
        self.store = RedisTransport(self.settings).store
        logs = folder / "logs"
        logs.mkdir(exist_ok=True)
        self.fleet = Fleet(
            self.settings,
            environment(plugin, notes.path),
            logs,
            redis_url=url,
            app=app,
            model="scripted:100",
            plugins="faults",
            lease=size.lease,
            grace=size.grace,
            concurrency=64,
            slots=64,
            in_flight=64,
        )

    @property
    def totals(self) -> dict[str, int]:
        """The ledger's counters."""
        found = self.store.client.hgetall(self.store.keys.totals)
        return {name: int(value) for name, value in found.items()}

    def queued(self) -> int:
        """Messages in Celery's lists."""
        keys = (self.store.keys.queue(name) for name in ("interactive", "standard", "batch"))
        return sum(self.store.client.llen(key) for key in keys)

    def finish(self, *, broken: bool = False) -> None:
        """Stop the workers; whatever will not expire by itself must be gone.

        Args:
            broken: connections were lost, with messages on them.
        """
        self.fleet.stop()
        client, app = self.store.client, self.settings.app
        assert keyspace.leaks(client, app, killed=broken or self.fleet.killed) == {}
        assert keyspace.foreign(client, app) == []

    def close(self) -> None:
        self.fleet.close()
        self.journal.close()
        self.store.close()


@pytest.fixture
def make_bed(
    size: Sizes, notes: Notes, plugin: Path, tmp_path: Path
) -> Iterator[Callable[[str], Bed]]:
    """Makes an application on a server of the test's own; its keys are checked at the end."""
    with ExitStack() as stack:

        def make(url: str, app: str = "faults") -> Bed:
            bed = Bed(url, app, size, notes, plugin, tmp_path)
            stack.callback(bed.close)
            return bed

        yield make


@pytest.fixture
def bed(server: EmbeddedServer, make_bed: Callable[..., Bed]) -> Iterator[Bed]:
    """An application on the server that the tests share, one after the other."""
    made = make_bed(server.url)
    try:
        yield made
        made.finish()
    finally:  # what a test leaves behind must not make the next one fail
        made.fleet.close()
        made.store.client.flushall()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A server of the test's own, to be killed and frozen."""
    folder = tmp_path / "valkey"
    folder.mkdir()
    made = Broker(folder)
    made.start()
    yield made
    made.close()


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    """A link to that server, to be cut."""
    made = Proxy(broker.port)
    yield made
    made.close()


@pytest.fixture
def stock(server: EmbeddedServer, plugin: Path, notes: Notes, tmp_path: Path) -> Iterator[Stock]:
    """A plain Celery application on the server that the tests share."""
    logs = tmp_path / "stock"
    logs.mkdir()
    made = Stock(server.url, environment(plugin, notes.path), logs)
    yield made
    made.close()
    with made.client as client:
        client.flushall()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Waits until a condition holds."""
    return wait_until
