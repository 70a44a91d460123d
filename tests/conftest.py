"""What every test gets: settings of its own, and none of the machine's."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is not a failure; and CI tries the same cases each time, so that what it says
# is about the change. Everywhere else new ones are tried.
settings.register_profile("gptflow", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("gptflow")

_FOLDERS = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
_OF_THE_MODEL_STORE = frozenset({"XDG_CACHE_HOME", "GPTFLOW_CACHE_DIR"})


if "PYTEST_XDIST_WORKER" in os.environ:
    # Other tests have the other cores: threads that wait for each other's turns take ten times
    # as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background so; commands that tests interrupt inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nightly", action="store_true", help="fault tests at their full size, with real leases"
    )
    parser.addoption(
        "--data-folder",
        type=Path,
        default=Path(__file__).parents[2] / "shared/data",
        help="public data sets; tests of figures on them skip where there is none",
    )


@pytest.fixture(autouse=True)
def _own_settings(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """No `GPTFLOW_*` variables, no terminal, empty folders; who needs a model keeps the store."""
    kept = _OF_THE_MODEL_STORE if request.node.get_closest_marker("model") else frozenset()
    for name in list(os.environ):
        if name.startswith("GPTFLOW_") and name not in kept:
            monkeypatch.delenv(name)
    for name in ("COLUMNS", "LINES"):  # readline puts them there where tests run in parallel
        monkeypatch.delenv(name, raising=False)
    home = tmp_path_factory.mktemp("home")
    for name in set(_FOLDERS) - kept:
        monkeypatch.setenv(name, str(home / name.lower()))
