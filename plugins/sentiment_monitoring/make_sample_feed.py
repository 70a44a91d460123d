"""Writes the sample feed: three weeks of posts about companies that do not exist.

Quiet days have seven posts or so, one or two of them bad; on the last Monday a bank gets into
trouble. The same seed gives the same file:

    python make_sample_feed.py > gptflow_sentiment_monitoring/sample_feed.jsonl
"""

from __future__ import annotations

import datetime as dt
import json
import random
from collections.abc import Iterator
from typing import Any

SEED = 7
START = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)
QUIET_DAYS = 21

COMPANIES = [
    ("Brightwell Energy", "BWEN"),
    ("Calder Motors", "CLDM"),
    ("Dunmore Foods", "DNMF"),
    ("Eastlake Software", "ELKS"),
    ("Fairhaven Airlines", "FHVN"),
    ("Glenrock Mining", "GLRK"),
    ("Hartley Pharma", "HTLY"),
    ("Ironbridge Steel", "IRBG"),
    ("Juniper Retail", "JPRT"),
    ("Kestrel Chips", "KSTL"),
    ("Larkfield Insurance", "LKFD"),
    ("Northgate Bank", "NGBK"),
]

NEUTRAL = [
    "{name} names a new head of investor relations",
    "{name} to hold its annual meeting on {day}",
    "{name} will present at the {city} conference next week",
    "${tick} - {name} to report quarterly results on {day}",
    "{name} opens an office in {city}",
    "What to know before {name} reports on {day}",
    "{name} completes its move to {city}",
    "{name} publishes the agenda of its investor day in {city}",
    "Five questions for the new chief of {name}",
    "{name} sells {amount} million of seven-year bonds",
    "Central bank publishes the minutes of its {month} meeting",
    "Oil market: what traders will watch on {day}",
    "Calendar: data and auctions due on {day}",
    "{city} exchange changes its opening hours in {month}",
    "Interview: how {name} hires engineers in {city}",
]

POSITIVE = [
    "{name} shares jump {pct}% as profit beats estimates",
    "${tick} - {name} raised to Buy, analysts see strong demand",
    "{name} lifts its dividend by {pct}% after record sales",
    "{name} wins a {amount} million order from {city}",
    "${tick} rallies {pct}% on upbeat outlook",
    "Strong quarter: {name} grows sales by {pct}% in {city}",
]

NEGATIVE = [
    "{name} shares slide {pct}% after weak sales",
    "${tick} - {name} cut to Sell on falling margins",
    "{name} warns of a loss, cuts {amount} jobs in {city}",
    "{name} misses estimates as costs rise, stock drops {pct}%",
    "${tick} tumbles {pct}% on a weak outlook",
]

TROUBLE = [
    "Northgate Bank shares plunge {pct}% as depositors pull out money",
    "$NGBK - Northgate Bank halts trading after {pct}% slide",
    "Regulators probe losses at Northgate Bank in {city}",
    "$NGBK tumbles {pct}% on fears of a {amount} million loss",
    "Northgate Bank warns of a {amount} million loss on bad loans",
    "Rating agency cuts Northgate Bank to junk, shares drop {pct}%",
    "Queues outside Northgate Bank branches in {city} as panic spreads",
    "Northgate Bank's chief quits amid fraud claims, stock falls {pct}%",
    "$NGBK - short sellers attack Northgate Bank, shares slump {pct}%",
    "Banks in {city} sink as Northgate Bank crisis deepens",
    "Northgate Bank fails to raise {amount} million, shares crash {pct}%",
    "Northgate Bank bonds collapse to {pct} cents on the dollar",
    "Larkfield Insurance slides {pct}% on losses from Northgate Bank",
    "$LKFD - Larkfield Insurance hit by {amount} million Northgate loss",
]

CITIES = ["Oslo", "Lima", "Porto", "Osaka", "Leeds", "Turin", "Perth", "Lyon", "Quito", "Bergen"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
MONTHS = ["January", "February", "April", "May"]


def posts() -> Iterator[tuple[dt.datetime, str]]:
    rng = random.Random(SEED)  # noqa: S311  not for secrets
    told: set[str] = set()

    def write(templates: list[str]) -> str:
        while True:
            name, tick = rng.choice(COMPANIES)
            text = rng.choice(templates).format(
                name=name,
                tick=tick,
                day=rng.choice(DAYS),
                city=rng.choice(CITIES),
                month=rng.choice(MONTHS),
                pct=rng.randint(3, 38),
                amount=rng.randint(2, 90) * 10,
            )
            if text not in told:
                told.add(text)
                return text

    for day in range(QUIET_DAYS):
        quiet = START + dt.timedelta(days=day)
        for _ in range(rng.randint(5, 7) if quiet.weekday() < 5 else rng.randint(3, 5)):
            templates = rng.choices([NEUTRAL, POSITIVE, NEGATIVE], weights=[5, 2, 1])[0]
            yield quiet + dt.timedelta(minutes=rng.randint(420, 1260)), write(templates)
    monday = START + dt.timedelta(days=QUIET_DAYS)
    for _ in range(66):
        yield monday + dt.timedelta(minutes=rng.randint(540, 1080)), write(TROUBLE)
    for day in range(2):
        after = monday + dt.timedelta(days=day)
        for _ in range(8):
            templates = rng.choices([NEUTRAL, POSITIVE, NEGATIVE], weights=[5, 2, 1])[0]
            yield after + dt.timedelta(minutes=rng.randint(420, 1320)), write(templates)


def rows() -> Iterator[dict[str, Any]]:
    """The posts in the order of their time; some are told again by another source."""
    rng = random.Random(SEED)  # noqa: S311  not for secrets
    number = 0
    for moment, text in sorted(posts()):
        source = rng.choice(["newswire", "forum", "desk"])
        copies = [(moment, text, source)]
        if rng.random() < 0.06:
            later = moment + dt.timedelta(minutes=rng.randint(3, 40))
            copies.append((later, f"{text} https://example.com/{number}", "repost"))
        for when, words, origin in copies:
            number += 1
            ts = when.isoformat().replace("+00:00", "Z")
            yield {"id": f"post-{number}", "ts": ts, "source": origin, "text": words}


if __name__ == "__main__":
    for row in sorted(rows(), key=lambda row: (row["ts"], row["id"])):
        print(json.dumps(row, ensure_ascii=False))
