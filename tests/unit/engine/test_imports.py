"""The engine needs torch and transformers, and nothing that only queues or grammars need."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import gptflow.engine.bench
import gptflow.engine.loader
"""


def test_it_imports_where_a_gpu_is_lent_with_torch_and_transformers_alone():
    absent = ["celery", "kombu", "redis", "llguidance", "gguf", "platformdirs"]
    absent += ["pydantic", "pydantic_core", "pydantic_settings"]
    subprocess.run([sys.executable, "-c", PROGRAM.format(absent=absent)], check=True, timeout=120)
