"""Customers' intents: Banking77 and CLINC150, two heads of one adapter."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

from shipped.recipe import UPPER, Recipe, Rows, write_rows

_BANK = ("bank", "Banking77", "CC BY 4.0")
_EVERYDAY = ("everyday", "CLINC150", "CC BY 3.0")


def prepare(data: Path, out: Path) -> Sequence[Rows]:
    """The published splits; CLINC150's `val` stays aside, for what is chosen after training."""
    bank = {}
    for split in ("train", "test"):
        with gzip.open(data / f"banking77/{split}.csv.gz", "rt", encoding="utf-8") as file:
            bank[split] = [
                {"text": row["text"], "bank": row["category"]} for row in csv.DictReader(file)
            ]
    clinc = clinc150(data)
    everyday = {
        split: [{"text": text, "everyday": label} for text, label in clinc[split]]
        for split in ("train", "test")
    }
    return [
        Rows(
            path=write_rows(out / f"{head}-{split}.jsonl", rows[split]),
            split="train" if split == "train" else "test",
            name=name,
            licence=licence,
            labels={head: head},
        )
        for rows, (head, name, licence) in ((bank, _BANK), (everyday, _EVERYDAY))
        for split in ("train", "test")
    ]


def clinc150(data: Path) -> dict[str, list[tuple[str, str]]]:
    """Texts and labels of each split; those of `oos_...` are out of scope."""
    with gzip.open(data / "clinc150/data_full.json.gz", "rt", encoding="utf-8") as file:
        return {split: [(t, label) for t, label in rows] for split, rows in json.load(file).items()}


RECIPE = Recipe(
    alias="customer_intents",
    plugin="customer_service",
    task="customer.intent",
    kind="labels",
    prepare=prepare,
    settings={**UPPER, "learning_rate": 5e-4, "epochs": 5, "evaluations": 1, "in_scope": 0.96},
    gates={"bank.accuracy": 0.895, "bank.ece": 0.04, "everyday.ece": 0.04},
)
