"""What a caller loads to reach a queue."""

from __future__ import annotations

import subprocess
import sys


def test_a_caller_loads_neither_torch_nor_celery_nor_the_engine() -> None:
    code = (
        "import sys; from gptflow import config; from gptflow.transport import connect;"
        "connect(config.load(redis_url='redis://127.0.0.1:1/0'));"
        "print([m for m in ('torch', 'transformers', 'celery', 'kombu', 'gptflow.engine')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
