"""How often each signal ranks the item first that the user in fact chose.

    python benchmarks/leave_one_out.py                        the plugin's own examples
    python benchmarks/leave_one_out.py --msweb FOLDER         web site areas that people visited

The second reads the UCI "Anonymous Microsoft Web Data" files: of each test user, one visited
area is held out and ranked among all areas that the user has not visited; popularity is
counted on the training users.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

from gptflow.context import Job
from gptflow.engine import load
from gptflow.executor import Executor
from gptflow.request import Engine
from gptflow.testing import examples, registry_of
from gptflow_recommendation_scoring.task import Rank
from gptflow_recommendation_scoring.web_visits import read_visits

Case = tuple[dict[str, Any], str]
"""An input, and the item that ought to come first."""

ALONE = {"interest": 0.0, "similarity": 0.0, "popularity": 0.0, "rating": 0.0, "price": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "popularity": {"weights": ALONE | {"popularity": 1.0}},
    "similarity": {"weights": ALONE | {"similarity": 1.0}},
    "interest, yes_no": {"weights": ALONE | {"interest": 1.0}, "judge": "yes_no"},
    "interest, likelihood": {"weights": ALONE | {"interest": 1.0}},
    "default weights": {},
}


def own_examples() -> list[Case]:
    """Examples with a history, a choice and an expected first item."""
    return [
        (row["input"], row["expected"]["first"])
        for row in examples(Rank())
        if row["expected"].get("first")
        and row["input"]["user"]["history"]
        and len(row["input"]["candidates"]) >= 3
    ]


def msweb(folder: Path, users: int) -> list[Case]:
    """A sample of test users with two visits or more, one visit of each held out."""
    train, titles = read_visits(folder / "anonymous-msweb.data.gz")
    test, _ = read_visits(folder / "anonymous-msweb.test.gz")
    popularity = Counter(area for visited in train.values() for area in visited)
    eligible = [user for user, visited in test.items() if len(visited) >= 2]
    cases: list[Case] = []
    for user in sorted(eligible, key=_hash)[:users]:
        target = min(test[user], key=lambda area: _hash(user + area))
        history = [a for a in test[user] if a != target]
        row = {
            "user": {
                "id": user,
                "history": [{"item_id": area, "text": titles[area]} for area in history],
            },
            "candidates": [
                {"item_id": a, "text": titles[a], "features": {"popularity": popularity[a]}}
                for a in titles
            ],
            "now": "1998-02-28T00:00:00Z",
        }
        cases.append((row, target))
    return cases


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def places(engine: Engine, cases: list[Case], options: dict[str, Any]) -> list[int]:
    """The rank of each case's item when everything is ranked, without diversity."""
    executor = Executor(engine, registry_of(Rank()))
    ranks = []
    for number, (row, target) in enumerate(cases):
        given = {"max_model_candidates": 500} if options else {}
        value = {**row, **given, **options, "k": 1000, "diversity": 0.0, "category_cap": None}
        result = await executor.run(Job(id=str(number), task=Rank.name, input=value))
        items = result.unwrap()["items"]
        ranks.append(next(item["rank"] for item in items if item["item_id"] == target))
    return ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("--msweb", type=Path, help="folder of the UCI files")
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--skip", action="append", default=[], choices=VARIANTS)
    arguments = parser.parse_args()
    cases = msweb(arguments.msweb, arguments.users) if arguments.msweb else own_examples()
    depth = 10 if arguments.msweb else 1
    engine = load(arguments.model)
    print(f"{len(cases)} users, {len(cases[0][0]['candidates'])} candidates")
    print(f"{'ranked by':22} {f'HR@{depth}':>6} {'NDCG@10':>8} {'seconds':>8}")
    for name, options in VARIANTS.items():
        if name in arguments.skip:
            continue
        began = time.perf_counter()
        ranks = asyncio.run(places(engine, cases, options))
        hits = sum(rank <= depth for rank in ranks) / len(ranks)
        gain = sum(1 / math.log2(rank + 1) for rank in ranks if rank <= 10) / len(ranks)
        print(f"{name:22} {hits:6.3f} {gain:8.3f} {time.perf_counter() - began:8.1f}", flush=True)
    engine.close()


if __name__ == "__main__":
    main()
