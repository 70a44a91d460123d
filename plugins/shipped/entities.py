"""Names: in posts (WNUT17) and in filings (SEC loan agreements), an adapter each."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from shipped.recipe import UPPER, Recipe, Rows

Split = Literal["train", "dev", "test"]


def _prepare(
    files: Mapping[Split, str], name: str, licence: str, data: Path, out: Path
) -> Sequence[Rows]:
    made = []
    out.mkdir(parents=True, exist_ok=True)
    for split, file in files.items():
        path = out / f"{split}.conll"
        lines = gzip.decompress((data / file).read_bytes()).splitlines(keepends=True)
        # Without the borders of documents: of five, none can be put aside to choose by.
        path.write_bytes(b"".join(line for line in lines if not line.startswith(b"-DOCSTART-")))
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
    settings={**UPPER, "epochs": 5, "evaluations": 1},
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
