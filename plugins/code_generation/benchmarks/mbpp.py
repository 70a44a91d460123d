"""pass@1 on MBPP: `python benchmarks/mbpp.py sanitized-mbpp.json[.gz] --limit 50 [--samples 5]`.

Takes the first problems of the test split (task ids 11 to 510) in the file's order. Words and
all tests of a problem are in the prompt, as is customary for this data set. With more than one
sample, candidates are ranked by the same tests, so that figure is best-of-n with visible tests.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import time
from pathlib import Path
from typing import Any

import gptflow


def problems(path: Path, limit: int) -> list[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        rows = json.load(file)
    return [row for row in rows if 11 <= row["task_id"] <= 510][:limit]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--samples", type=int, default=1)
    arguments = parser.parse_args()
    rows = problems(arguments.data, arguments.limit)
    started = time.perf_counter()
    inputs = [
        {
            "prompt": row["prompt"],
            "tests": row["test_list"],
            "mode": "generate",
            "n": arguments.samples,
            "max_new_tokens": 192,
        }
        for row in rows
    ]
    with gptflow.Client("memory://") as flow:
        jobs = [flow.submit("code.generate", given, seed=0) for given in inputs]
        answers = [job.result(timeout=3600) for job in jobs]
    best = [answer["candidates"][0] for answer in answers]
    statuses = collections.Counter(candidate["tests"]["status"] for candidate in best)
    print(
        json.dumps(
            {
                "problems": len(rows),
                "samples": arguments.samples,
                "solved": statuses["passed"],
                "share": round(statuses["passed"] / len(rows), 3),
                "parses": sum(candidate["parses"] for candidate in best),
                "statuses": dict(statuses.most_common()),
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
