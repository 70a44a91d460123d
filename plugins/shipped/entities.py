"""Names: in posts (WNUT17) and in filings (SEC loan agreements), an adapter each."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from gptflow.cleaning import clean
from shipped.recipe import UPPER, Recipe, Rows

Split = Literal["train", "dev", "test"]


def _prepare(
    files: Mapping[Split, str], name: str, licence: str, data: Path, out: Path
) -> Sequence[Rows]:
    made = []
    out.mkdir(parents=True, exist_ok=True)
    for split, file in files.items():
        path = out / f"{split}.conll"
        text = gzip.decompress((data / file).read_bytes()).decode()
        # Without the borders of documents: of five, none can be put aside to choose by.
        lines = [line for line in text.split("\n") if not line.startswith("-DOCSTART-")]
        # Without the invisible characters within words, which a task takes out of its input.
        path.write_text("\n".join(map(clean, lines)), encoding="utf-8")
        made.append(Rows(path=path, split=split, name=name, licence=licence))
    return made


POSTS = Recipe(
    alias="post_entities",
    plugin="sentiment_monitoring",
    task="sentiment.entities",
    kind="tags",
    prepare=partial(
        _prepare,
        {
            "train": "wnut17/train.conll.gz",
            "dev": "wnut17/dev.conll.gz",
            "test": "wnut17/test.conll.gz",
        },
        "WNUT17 Emerging Entities",
        "CC BY 4.0",
    ),
    settings={**UPPER, "epochs": 3, "evaluations": 1},
    gates={"entity_f1": 0.30},
)

FILINGS = Recipe(
    alias="filing_entities",
    plugin="sentiment_monitoring",
    task="sentiment.filing_entities",
    kind="tags",
    prepare=partial(
        _prepare,
        {
            "train": "sec_filings_ner/FIN5_train.txt.gz",
            "test": "sec_filings_ner/FIN3_test.txt.gz",
        },
        "SEC filings NER (FIN5, FIN3)",
        "CC BY 3.0",
    ),
    settings={**UPPER, "epochs": 10, "batch": 16, "evaluations": 1, "patience": 4},
    gates={"entity_f1": 0.70},
)
