"""TLS: the client and Celery's transport check the server, and show it their own certificate."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from gptflow import config
from gptflow.client import Client
from gptflow.config import Settings
from gptflow.errors import BrokerUnavailable, ConfigError
from gptflow.queue.control import stats
from gptflow.queue.embedded import EmbeddedServer, find_server

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")

Eventually = Callable[..., None]


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server that it vouches for as `localhost`, a client, and a stranger."""
    folder = tmp_path_factory.mktemp("certificates")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "stranger"):
        openssl(folder, "req", "-x509", *curve, "-keyout", f"{name}.key", "-out", f"{name}.crt",
                "-subj", f"/CN={name}", "-days", "2")  # fmt: skip
    for name in ("server", "client"):
        (folder / f"{name}.ext").write_text(
            f"subjectAltName=DNS:{'localhost' * (name == 'server') or name}\n"
        )
        openssl(folder, "req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr",
                "-subj", f"/CN={name}")  # fmt: skip
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
                "-CAcreateserial", "-out", f"{name}.crt", "-days", "2",
                "-extfile", f"{name}.ext")  # fmt: skip
    return folder


class Place(NamedTuple):
    """Where a server is reached by TLS."""

    port: int
    password: str


class Gate:
    """Takes TLS connections from clients with a certificate, and passes them to a server."""

    def __init__(self, folder: Path, target: int) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "server.crt", folder / "server.key")
        self._context.load_verify_locations(folder / "ca.crt")
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            plain,
            self._context.wrap_socket(plain, server_side=True) as outer,
            socket.create_connection(("127.0.0.1", self._target)) as inner,
        ):
            back = threading.Thread(target=_copy, args=(inner, outer), daemon=True)
            back.start()
            _copy(outer, inner)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError, ValueError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module", params=["valkey", "gate"])
def place(
    request: pytest.FixtureRequest, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """A server that speaks TLS by itself; and any server, behind something that does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    if request.param == "gate":
        with EmbeddedServer(port=port) as server:
            gate = Gate(certificates, port)
            yield Place(gate.port, server.url.split("@")[0].removeprefix("redis://:"))
            gate.close()
        return
    folder = tmp_path_factory.mktemp("server")
    with serve(certificates, folder, port):
        yield Place(port, "a password")


@contextlib.contextmanager
def serve(certificates: Path, folder: Path, port: int) -> Iterator[None]:
    """Run a server with TLS; skip where the one that there is was built without."""
    (folder / "server.conf").write_text(
        f"port 0\nbind 127.0.0.1\ntls-port {port}\n"
        f"tls-cert-file {certificates}/server.crt\ntls-key-file {certificates}/server.key\n"
        f"tls-ca-cert-file {certificates}/ca.crt\ntls-auth-clients yes\n"
        f'requirepass "a password"\nappendonly yes\ndir {folder}\n'
        f"maxmemory-policy noeviction\nlogfile {folder}/log\n"
    )
    program = os.environ.get("TESTBED_TLS_SERVER") or find_server()
    process = subprocess.Popen([str(program), str(folder / "server.conf")])
    try:
        until = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            log = (folder / "log").read_text() if (folder / "log").exists() else ""
            if process.poll() is not None and "TLS" in log:
                pytest.skip(f"{program} was built without TLS")
            assert process.poll() is None, log
            assert time.monotonic() < until, log
            time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.wait()


def settings_of(place: Place, host: str = "localhost", **more: Any) -> Settings:
    url = f"rediss://:{quote(place.password)}@{host}:{place.port}/0"
    return config.load(redis_url=url, **{name: value for name, value in more.items() if value})


@pytest.fixture
def files(certificates: Path) -> dict[str, Any]:
    return {
        "tls_ca": certificates / "ca.crt",
        "tls_certificate": certificates / "client.crt",
        "tls_key": certificates / "client.key",
    }


def test_jobs_go_through_and_so_does_celerys_remote_control(
    place: Place, files: dict[str, Any], start: Any, eventually: Eventually
) -> None:
    settings = settings_of(place, **files)
    given = {name: str(path) for name, path in files.items()}
    worker = start("gptflow_workers.cpu", redis_url=settings.broker_url, **given)
    with Client(settings=settings) as client:
        eventually(lambda: bool(client.transport.workers()) or worker.popen.poll() is not None, 60)
        assert client.run("bed.echo", {"value": 1}, timeout=20) == {"value": 1}
        assert len(stats(settings)) == 1
    assert worker.terminate() == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"tls_ca": "stranger.crt"},
        {"tls_ca": None},
        {"tls_certificate": "stranger.crt", "tls_key": "stranger.key"},
        {"tls_certificate": None, "tls_key": None},
        {"host": "127.0.0.1"},
    ],
    ids=["stranger's server", "no authority", "stranger", "no certificate", "other host"],
)
def test_who_is_not_vouched_for_is_not_talked_to(
    place: Place,
    files: dict[str, Any],
    certificates: Path,
    wrong: dict[str, Any],
) -> None:
    changed = {
        name: certificates / value if value and name != "host" else value
        for name, value in wrong.items()
    }
    settings = settings_of(place, **files | changed)
    with Client(settings=settings) as client, pytest.raises(BrokerUnavailable):
        client.transport.jobs(None, 1)


def test_the_check_of_the_hosts_name_can_be_switched_off(
    place: Place, files: dict[str, Any]
) -> None:
    settings = settings_of(place, "127.0.0.1", **files)
    settings = settings.model_copy(update={"tls_check_hostname": False})
    with Client(settings=settings) as client:
        client.transport.jobs(None, 1)
    assert stats(settings, timeout=0.5) is not None


def test_files_that_are_missing_are_named(
    place: Place, files: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="tls_ca"):
        Client(settings=settings_of(place, **files | {"tls_ca": tmp_path / "none.crt"}))
    with pytest.raises(ConfigError, match="go together"):
        Client(settings=settings_of(place, **files | {"tls_key": None}))
