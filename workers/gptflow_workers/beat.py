"""`python -m gptflow_workers.beat`: the scheduler. Several may run; each schedule fires once."""

from __future__ import annotations

from gptflow_workers import start

if __name__ == "__main__":
    start("beat")
