"""The repository itself: deployment files, distributions, and what plugins come with."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptflow.config import Settings
from gptflow.plugins import Registry
from gptflow.queue.acl import ROLES, Role, acl_file

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = sorted(ROOT.glob("plugins/*/pyproject.toml"))
DOCKERFILES = sorted(ROOT.glob("workers/*.Dockerfile"))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    found: dict[str, Any] = compose["services"]
    return found


def test_compose_has_a_server_two_kinds_of_worker_and_the_scheduler(
    services: dict[str, Any],
) -> None:
    assert set(services) == {"valkey", "worker-cpu", "worker-gpu", "beat"}
    assert services["worker-gpu"]["profiles"] == ["gpu"]
    for name in ("worker-cpu", "worker-gpu", "beat"):
        assert (ROOT / services[name]["build"]["dockerfile"]).is_file()
        module = services[name]["command"][-1].partition(".")[2]
        assert (ROOT / f"workers/gptflow_workers/{module}.py").is_file()


def test_the_server_keeps_everything_and_asks_for_a_password(services: dict[str, Any]) -> None:
    command = " ".join(services["valkey"]["command"])
    for setting in ("appendonly yes", "maxmemory-policy noeviction", "user default off"):
        assert setting in command
    # Without a password `docker compose` refuses to start.
    for role in ROLES:
        assert ":?" in services["valkey"]["environment"][f"{role.upper()}_PASSWORD"]
    passwords: dict[Role, str] = {role: f"$${role.upper()}_PASSWORD" for role in ROLES}
    assert acl_file("gptflow", passwords) in command
    assert ":?" in services["worker-cpu"]["environment"]["GPTFLOW_REDIS_URL"]


def test_nothing_in_compose_runs_as_root_or_listens_to_the_world(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert services["valkey"]["user"].split(":")[0] != "0"
    for dockerfile in DOCKERFILES:
        users = re.findall(r"^USER (\w+)", dockerfile.read_text(encoding="utf-8"), re.MULTILINE)
        assert users[-1:] not in ([], ["root"]), dockerfile


def test_workers_are_asked_whether_they_take_jobs_and_get_their_grace(
    services: dict[str, Any],
) -> None:
    for name in ("worker-cpu", "worker-gpu"):
        service = services[name]
        port = service["environment"]["GPTFLOW_METRICS_PORT"]
        assert service["environment"]["GPTFLOW_MODEL"]
        assert service["restart"] == "unless-stopped"
        assert f"127.0.0.1:{port}/readyz" in service["healthcheck"]["test"][-1]
        seconds = int(service["stop_grace_period"].removesuffix("s"))
        assert seconds >= Settings().grace + 10
    assert "GPTFLOW_METRICS_PORT" not in services["beat"]["environment"]


def test_images_copy_only_what_exists() -> None:
    for dockerfile in DOCKERFILES:
        text = dockerfile.read_text(encoding="utf-8")
        for line in re.findall(r"^COPY (?!--from)(.+)", text, re.MULTILINE):
            for source in line.split()[:-1]:
                assert (ROOT / source).exists(), source


@pytest.mark.parametrize("path", DISTRIBUTIONS, ids=lambda path: path.parent.name)
def test_every_plugin_is_a_distribution_of_its_own(path: Path) -> None:
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    [(name, module)] = project["entry-points"]["gptflow"].items()
    assert (path.parent / module / "__init__.py").is_file()
    assert (path.parent / module / "py.typed").is_file()
    assert list((path.parent / module / "prompts").glob("*.j2"))
    assert len((path.parent / "README.md").read_text(encoding="utf-8").splitlines()) > 20
    assert name in Registry.load([name]).plugins


@pytest.mark.parametrize("path", DISTRIBUTIONS, ids=lambda path: path.parent.name)
def test_every_plugin_comes_with_thirty_examples(path: Path) -> None:
    [examples] = path.parent.glob("gptflow_*/examples.jsonl")
    rows = [json.loads(line) for line in examples.read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 30
    assert all("input" in row for row in rows)
    assert len({json.dumps(row["input"], sort_keys=True) for row in rows}) == len(rows)


def test_the_knowledge_base_is_large_bilingual_and_marked_synthetic() -> None:
    [path] = ROOT.glob("plugins/customer_service/gptflow_*/knowledge.jsonl")
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(entries) >= 60
    assert {entry["locale"] for entry in entries} == {"en", "zh"}
    assert all(entry["synthetic"] is True for entry in entries)


def test_requirements_name_every_distribution() -> None:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    for path in (ROOT / "workers/pyproject.toml", *DISTRIBUTIONS):
        assert f"-e {path.parent.relative_to(ROOT)}" in text.splitlines()


def test_every_version_is_the_same() -> None:
    from gptflow import __version__

    projects = (ROOT / "pyproject.toml", ROOT / "workers/pyproject.toml", *DISTRIBUTIONS)
    found = {tomllib.loads(path.read_text("utf-8"))["project"]["version"] for path in projects}
    assert found == {__version__}


def test_no_file_is_longer_than_five_hundred_lines() -> None:
    for folder in ("gptflow", "workers", "plugins", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path
