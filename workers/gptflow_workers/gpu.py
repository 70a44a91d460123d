"""`python -m gptflow_workers.gpu`: a worker whose model runs on the GPU."""

from __future__ import annotations

from gptflow_workers import start

if __name__ == "__main__":
    start("gpu")
