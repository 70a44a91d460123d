"""`python -m gptflow_workers.cpu`: a worker whose model runs on the CPU."""

from __future__ import annotations

from gptflow_workers import start

if __name__ == "__main__":
    start("cpu")
