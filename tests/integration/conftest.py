"""A real Valkey and a real Celery worker, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from gptflow import config
from gptflow.client import Client
from gptflow.config import Settings
from gptflow.queue.embedded import EmbeddedServer
from gptflow.queue.transport import RedisTransport

TESTBED = Path(__file__).parent / "testbed"
READY_SECONDS = 60


class Process:
    """A GPTFlow process with its log in a file."""

    def __init__(
        self, module: str, arguments: Sequence[str], environment: dict[str, str], log: Path
    ) -> None:
        self.log = log
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def terminate(self) -> int:
        """TERM, and its exit code."""
        self.popen.terminate()
        return self.popen.wait(60)

    def kill(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something in another process is so."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.02)


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Waits until a condition holds."""
    return wait_until


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as running:
        yield running


@pytest.fixture(scope="session")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that installs the plugin `testbed`."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "gptflow_testbed.py").symlink_to(TESTBED / "gptflow_testbed.py")
    info = folder / "gptflow_testbed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gptflow-testbed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gptflow]\ntestbed = gptflow_testbed\n")
    return folder


@pytest.fixture(scope="session")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the test plugin writes down."""
    path = tmp_path_factory.mktemp("notes") / "notes.txt"
    path.touch()
    return path


@pytest.fixture(scope="session")
def start(
    server: EmbeddedServer, testbed: Path, notes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Process]]:
    """Start a process on the server; settings are those of the name in capitals."""
    started: list[Process] = []

    def start_process(module: str, *arguments: str, **settings: str) -> Process:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GPTFLOW_")}
        given = {"redis_url": server.url, "model": "scripted", "plugins": "text,testbed"} | settings
        environment = kept | {f"GPTFLOW_{name.upper()}": value for name, value in given.items()}
        # What is tested is found where the tests find it, and the plugin with it.
        path = os.pathsep.join(filter(None, [str(testbed), os.environ.get("PYTHONPATH")]))
        environment |= {"PYTHONPATH": path, "TESTBED_NOTES": str(notes)}
        log = tmp_path_factory.mktemp("log") / f"{module}.log"
        started.append(Process(module, arguments, environment, log))
        return started[-1]

    yield start_process
    for process in started:
        process.kill()


@pytest.fixture(scope="session")
def start_worker(start: Callable[..., Process], server: EmbeddedServer) -> Callable[..., Process]:
    """Start a worker and wait until it is ready."""

    def start_ready(**settings: str) -> Process:
        worker = start("gptflow_workers.cpu", **settings)
        app = settings.get("app", "gptflow")
        url = settings.get("redis_url", server.url)
        transport = RedisTransport(Settings(redis_url=url, app=app))

        def ready() -> bool:
            ended = worker.popen.poll() is not None
            # Its record outlives it: a job may have killed it as soon as it was ready.
            if worker.popen.pid in {record.pid for record in transport.workers()}:
                return True
            assert not ended, worker.output
            return False

        wait_until(ready, READY_SECONDS)
        transport.close()
        return worker

    return start_ready


@pytest.fixture(scope="session")
def worker(start_worker: Callable[..., Process]) -> Process:
    """The worker that most tests share."""
    return start_worker()


@pytest.fixture
def settings(server: EmbeddedServer) -> Settings:
    return config.load(redis_url=server.url)


@pytest.fixture
def flow(settings: Settings, worker: Process) -> Iterator[Client]:
    """A client of the shared worker."""
    with Client(settings=settings) as client:
        yield client


@pytest.fixture
def own(server: EmbeddedServer, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of an application that no other test uses."""
    app = f"own-{abs(hash(request.node.name)) % 10**8}"
    with Client(settings=config.load(redis_url=server.url, app=app)) as client:
        yield client
