"""What `gptflow submit` takes in memory for batches of several sizes, and how fast it is.

    python benchmarks/batch_memory.py --rows 10000 --rows 100000 [--json]

Starts a server and a worker with a scripted engine; the client is a process of its own, and its
peak is what the system says of it in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gptflow.config import Settings
from gptflow.queue.embedded import EmbeddedServer
from gptflow.queue.transport import RedisTransport

READY_SECONDS = 60
TEXT = "A row of a batch with about as much text as a short post has, number {}."


def write_rows(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            row = {"id": f"row-{number}", "text": TEXT.format(number)}
            stream.write(json.dumps(row) + "\n")


def measure(folder: Path, environment: dict[str, str], count: int) -> dict[str, float]:
    """Run a batch, and check that every row has its line."""
    source, out = folder / f"{count}.jsonl", folder / f"{count}.out.jsonl"
    write_rows(source, count)
    command = [sys.executable, "-m", "gptflow", "submit", "text.generate", str(source)]
    started = time.monotonic()
    client = subprocess.Popen([*command, "--out", str(out)], env=environment, stderr=sys.stderr)
    _, status, usage = os.wait4(client.pid, 0)
    seconds = time.monotonic() - started
    assert os.waitstatus_to_exitcode(status) == 0
    with out.open(encoding="utf-8") as stream:
        names = [json.loads(line)["custom_id"] for line in stream]
    assert names == [f"row-{number}" for number in range(count)]
    megabytes = usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return {
        "rows": count,
        "seconds": round(seconds, 2),
        "rows_s": round(count / seconds, 1),
        "client_cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "client_peak_mb": round(megabytes, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, EmbeddedServer() as server:
        folder = Path(name)
        environment = os.environ | {
            "GPTFLOW_REDIS_URL": server.url,
            "GPTFLOW_MODEL": "scripted",
            "GPTFLOW_PLUGINS": "text",
        }
        log = (folder / "worker.log").open("wb")
        worker = subprocess.Popen(
            [sys.executable, "-m", "gptflow_workers.cpu"], env=environment, stdout=log, stderr=log
        )
        try:
            transport = RedisTransport(Settings(redis_url=server.url))
            until = time.monotonic() + READY_SECONDS
            while not transport.workers():
                assert time.monotonic() < until, "the worker did not start"
                time.sleep(0.1)
            transport.close()
            found = [measure(folder, environment, n) for n in options.rows or (10_000, 100_000)]
        finally:
            worker.terminate()
            worker.wait()
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for each in found:
            print(", ".join(f"{name} {value}" for name, value in each.items()))


if __name__ == "__main__":
    main()
