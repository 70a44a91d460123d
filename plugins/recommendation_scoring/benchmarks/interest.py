"""How far `recommend.interest` gets alone: UCI "Anonymous Microsoft Web Data", full ranking.

    python benchmarks/interest.py FOLDER --model MODEL --users 100 --out ranks.jsonl

The same test users, held-out visits and candidates as in `blend.py`, of which a sample is asked
about; popularity, neighbours and the overlap of titles' words (Jaccard) beside it. Each user is
written to `--out` when it is done, and a run that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from blend import Floats, figures, hold_out

from gptflow.context import Job
from gptflow.engine import load
from gptflow.executor import Executor
from gptflow.testing import registry_of
from gptflow.training.evaluation.sessions import item_cosines, neighbour_scores, popularity, seen
from gptflow_recommendation_scoring import learned_interest
from gptflow_recommendation_scoring.defaults import ADAPTER
from gptflow_recommendation_scoring.learned_interest import ScoreInterest
from gptflow_recommendation_scoring.web_visits import read_visits

SHIPPED = Path(learned_interest.__file__).parent / "adapters" / ADAPTER


def jaccard(titles: list[str], histories: list[list[int]]) -> Floats:
    """`[histories, areas]`: shared words of a title and of all titles of a history, over all."""
    words = [set(re.findall(r"\w+", title.lower())) for title in titles]
    table = np.zeros((len(histories), len(titles)))
    for row, history in enumerate(histories):
        known = set().union(*(words[area] for area in history))
        table[row] = [len(known & own) / max(1, len(known | own)) for own in words]
    return table


def read_done(path: Path, protocol: dict[str, Any]) -> dict[int, list[float]]:
    """Scores of all areas by user, from an earlier run that asked in the same way."""
    if not path.exists():
        path.write_text(json.dumps(protocol) + "\n", encoding="utf-8")
        return {}
    first, *rest = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if json.loads(first) != protocol:
        raise SystemExit(f"{path} is of another model, adapter or data: {first.strip()}")
    whole = [line for line in rest if line.endswith("\n")]
    if whole != rest:  # it was stopped while it wrote
        path.write_text("".join([first, *whole]), encoding="utf-8")
    return {row["user"]: row["scores"] for row in map(json.loads, whole)}


async def ask(executor: Executor, titles: list[str], history: list[int]) -> list[float]:
    """The score of every area; 0 for those of the history, which are not ranked."""
    items = [{"id": str(n), "title": t} for n, t in enumerate(titles) if n not in history]
    value = {"history": [titles[area] for area in history], "items": items}
    result = await executor.run(Job(id="interest", task=ScoreInterest.name, input=value))
    scores = [0.0] * len(titles)
    for item in result.unwrap()["items"]:
        scores[int(item["id"])] = item["score"]
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of the UCI files")
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument("--adapter", type=Path, default=SHIPPED, help="by default the shipped one")
    parser.add_argument("--base", action="store_true", help="without an adapter: `likelihood`")
    parser.add_argument("--users", type=int, default=100, help="how many test users to ask about")
    parser.add_argument("--out", type=Path, default=Path("interest-ranks.jsonl"))
    arguments = parser.parse_args()
    if arguments.users < 1:
        parser.error("--users must be 1 or more")
    if not arguments.base and not arguments.adapter.is_dir():
        parser.error(f"{arguments.adapter} is no folder: `make adapters` makes one, or give --base")

    train, names = read_visits(arguments.folder / "anonymous-msweb.data.gz")
    test, _ = read_visits(arguments.folder / "anonymous-msweb.test.gz")
    everything = {a for part in (train, test) for visits in part.values() for a in visits}
    areas = sorted(everything, key=int)
    number = {area: n for n, area in enumerate(areas)}
    titles = [" ".join(names[area].split()) for area in areas]
    sessions = [[number[a] for a in visits] for visits in train.values()]
    asked = [[number[a] for a in visits] for visits in test.values() if len(visits) > 1]
    histories, right = hold_out(asked, 0)
    order = list(range(len(right)))
    random.Random(4).shuffle(order)
    users = order[: arguments.users]

    engine = load(arguments.model)
    reference = "none"
    if not arguments.base:
        engine.load_adapter(ADAPTER, arguments.adapter)
        reference = engine.adapters()[ADAPTER].sha256
    protocol = {"model": engine.model.id, "adapter": reference, "users": len(right)}
    done = read_done(arguments.out, protocol)
    executor = Executor(engine, registry_of(ScoreInterest()))
    began, fresh = time.perf_counter(), 0
    with arguments.out.open("a", encoding="utf-8") as file:
        for user in users:
            if user in done:
                continue
            done[user] = asyncio.run(ask(executor, titles, histories[user]))
            file.write(json.dumps({"user": user, "scores": done[user]}) + "\n")
            file.flush()
            fresh += 1
    engine.close()
    if fresh:
        print(f"{(time.perf_counter() - began) / fresh:.1f} seconds a user")

    own, targets = [histories[user] for user in users], [right[user] for user in users]
    mask = seen(own, len(areas))
    popular = np.tile(popularity(sessions, len(areas)), (len(own), 1))
    words = jaccard(titles, own)
    tables = {
        "popularity": popular,
        "neighbours": neighbour_scores(item_cosines(sessions, len(areas)), own),
        "title Jaccard": words,
        "... ties by popularity": words + popular / (1e4 * popular.max()),
        f"interest ({'likelihood' if arguments.base else 'trained'})": np.array(
            [done[user] for user in users]
        ),
    }
    print(f"{len(users)} of {len(right)} users, {len(areas)} areas")
    print(f"{'ranked by':24} {'HR@10':>6} {'NDCG@10':>8}")
    for name, table in tables.items():
        hits, gain = figures(table, mask, targets)
        print(f"{name:24} {hits:6.3f} {gain:8.3f}")


if __name__ == "__main__":
    main()
