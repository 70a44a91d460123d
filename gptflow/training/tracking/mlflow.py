"""MLflow."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptflow.errors import MissingDependency
from gptflow.training.runs import RunRecord
from gptflow.training.tracking.tracker import described, results

SEND_S = 10.0
"""Seconds for which figures are gathered: a request for each step would slow the training."""

_TAG = "gptflow.run"
_MOST = 500
"""Figures in one request; MLflow takes 1000."""


class MLflow:
    """Tells MLflow of a run: the server that `MLFLOW_TRACKING_URI` names, or a file.

    That file is `mlflow.db` beside the runs; `mlflow ui --backend-store-uri sqlite:///FILE` shows
    it. A run is found again by the tag `gptflow.run`.

    Args:
        folder: of the run.

    Raises:
        MissingDependency: mlflow is not installed.
    """

    def __init__(self, folder: Path) -> None:
        # A server that is gone ends this tracker within seconds; the default is many minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        try:
            import alembic  # noqa: F401  # MLflow itself is silent on what its files need
            import mlflow
            import sqlalchemy  # noqa: F401
        except ImportError as error:
            raise MissingDependency(
                f"Tracking with MLflow needs {error.name}.",
                hint="Type `pip install 'gptflow[mlflow]'`.",
            ) from None
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._mlflow: Any = mlflow
        self._folder = folder
        self._client: Any = None
        self._id = ""
        self._waiting: list[Any] = []
        self._sent = 0.0
        self._step = 0

    def begin(self, record: RunRecord) -> None:
        runs = self._folder.resolve().parent
        given = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = self._mlflow.MlflowClient(given or f"sqlite:///{runs / 'mlflow.db'}")
        experiment = self._experiment(record.task, None if given else runs / "mlflow-artifacts")
        found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{record.id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(
            experiment, run_name=record.id, tags={_TAG: record.id}
        ).info.run_id
        for name, value in described(record).items():
            self._client.log_param(self._id, name, value)

    def update(self, step: int, figures: Mapping[str, float]) -> None:
        self._step = step
        self._gather(figures)
        late = time.monotonic() - self._sent >= SEND_S
        if late or len(self._waiting) >= _MOST:
            self._send()

    def end(self, record: RunRecord, files: Mapping[str, Path]) -> None:
        self._step = self._step or record.steps
        if record.state == "done":
            self._gather(results(record))
        self._send()
        for name, path in files.items():
            place = Path(name).parent
            self._client.log_artifact(self._id, str(path), None if place == Path() else str(place))
        ended = {"done": "FINISHED", "failed": "FAILED"}.get(record.state, "KILLED")
        self._client.set_terminated(self._id, ended)

    def _experiment(self, name: str, artifacts: Path | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            where = None if artifacts is None else artifacts.as_uri()
            return str(self._client.create_experiment(name, artifact_location=where))
        return str(found.experiment_id)

    def _gather(self, figures: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._waiting += [
            self._mlflow.entities.Metric(name, value, now, self._step)
            for name, value in figures.items()
        ]

    def _send(self) -> None:
        while self._waiting:
            part, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            self._client.log_batch(self._id, metrics=part)
        self._sent = time.monotonic()
