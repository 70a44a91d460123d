"""The application of this process's settings, for Celery's own tools.

    celery -A gptflow.queue.worker_app inspect stats

It makes a worker, too: `celery -A gptflow.queue.worker_app worker` is `gptflow worker` with
Celery's banner and log.
"""

from __future__ import annotations

from gptflow import config
from gptflow.queue.app import make_app

app = make_app(config.load())
