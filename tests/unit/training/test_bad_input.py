"""What bad input gets from `gptflow train`: a typed error that helps, and nothing half written."""

from __future__ import annotations

import contextlib
import json
import pickle
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptflow.adapter_info import HEAD_WEIGHTS
from gptflow.training import artefact, checkpoint
from gptflow.training.evaluation.summary import Report
from gptflow.training.trainer import Trainer

Invoke = Callable[..., tuple[int, str, str]]

QUICK = ("--rank", "2", "--batch", "16", "--epochs", "0.5")


def rows(count: int = 40, labels: tuple[str, ...] = ("card", "cash", "refund", "fee")) -> str:
    return "".join(
        json.dumps({"text": f"my {labels[n % len(labels)]} {n}", "label": labels[n % len(labels)]})
        + "\n"
        for n in range(count)
    )


TAGS = "".join(
    json.dumps({"text": f"Ada lives in Paris {n}", "spans": [[0, 3, "name"], [13, 18, "place"]]})
    + "\n"
    for n in range(20)
)

CASES: dict[str, tuple[str, bytes, str, str]] = {
    "one class only": ("topic", rows(labels=("card",)).encode(), "GF807", "Add rows of the other"),
    "an empty file": ("topic", b"", "GF806", "right file"),
    "a line of 10 MB": (
        "topic",
        rows().encode() + json.dumps({"text": "x" * 10_000_000, "label": "card"}).encode() + b"\n",
        "GF803",
        "rows.jsonl:41",
    ),
    "mixed encodings": (
        "topic",
        rows().encode() + '{"text": "caf\u00e9", "label": "card"}\n'.encode("latin-1"),
        "GF802",
        "rows.jsonl:41",
    ),
    "labels with blanks": (
        "topic",
        rows().encode() + b'{"text": "mine", "label": "card "}\n',
        "GF804",
        "--strip-labels",
    ),
    "a label of no task": (
        "topic",
        rows().encode() + b'{"text": "mine", "label": "boat"}\n',
        "GF804",
        "--rename",
    ),
    "a span that ends inside a token": (
        "names",
        TAGS.encode() + b'{"text": "Ada lives", "spans": [[0, 2, "name"]]}\n',
        "GF805",
        "rows.jsonl:21",
    ),
    "no rows but a line that is none": ("topic", b"{]\n", "GF801", "rows.jsonl:1"),
    "another format than the suffix says": ("topic", b"PAR1" + bytes(64), "GF80", "rows.jsonl"),
}


@pytest.mark.parametrize("case", CASES)
def test_data_that_will_not_do(
    gptflow: Invoke, tiny: SimpleNamespace, tmp_path: Path, case: str
) -> None:
    task, content, code, told = CASES[case]
    given = tmp_path / "rows.jsonl"
    given.write_bytes(content)
    kind = "tags" if task == "names" else "labels"
    found, _, err = gptflow("train", f"tiny.{task}", "--data", str(given), "--kind", kind, *QUICK)
    assert found == 3, err
    assert f"error [{code}" in err
    assert told in err
    assert "xxxx" not in err  # never what a row says
    assert not (tmp_path / "data" / "adapters").exists()
    code, out, _ = gptflow("runs", "list", "--json")
    assert {row["state"] for row in json.loads(out)} <= {"failed"}


def test_a_label_of_the_test_rows_that_was_never_learnt(gptflow: Invoke, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(rows())
    (tmp_path / "test.jsonl").write_text(rows(8, ("card", "loan")))
    code, _, err = gptflow(
        "train", "tiny.topic", "--data", "rows.jsonl", "--test", "test.jsonl", *QUICK
    )
    assert code == 3
    assert "error [GF808]" in err
    assert "test.jsonl:2" in err
    assert "step" not in err  # it is told before anything is trained
    assert not (tmp_path / "data" / "adapters").exists()


def test_a_loss_that_is_no_number(gptflow: Invoke, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(rows())
    code, _, err = gptflow(
        "train", "tiny.topic", "--data", "rows.jsonl", "--rank", "2", "--batch", "8",
        "--learning-rate", "1e30", "--head-learning-rate", "1e30",
    )  # fmt: skip
    assert code == 13
    assert "error [GF901]" in err
    assert "--learning-rate" in err
    assert not (tmp_path / "data" / "adapters").exists()


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """As on a disk that is full: the system writes so much of a file and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("module", "name", "code"),
    [
        (artefact, "_write_weights", "GF712"),
        (checkpoint, "save", "GF900"),
        (Report, "write", "GF900"),
        (Trainer, "_log", "GF900"),
    ],
    ids=["adapter", "checkpoint", "report", "log"],
)
def test_a_disk_that_is_full(
    gptflow: Invoke,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    code: str,
) -> None:
    (tmp_path / "rows.jsonl").write_text(rows())
    write = getattr(module, name)

    def cramped(*args: Any, **named: Any) -> Any:
        with files_up_to(100):
            return write(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, cramped)
        found, _, err = gptflow("train", "tiny.topic", "--data", "rows.jsonl", *QUICK)
    assert found == (13 if code == "GF900" else 1)
    assert f"error [{code}]" in err
    assert "room" in err
    adapters = [path.name for path in (tmp_path / "data" / "adapters").rglob("*")]
    assert sorted(adapters) in ([], [".lock", "topic"])
    assert not list((tmp_path / "data" / "runs").glob("*/.[!l]*"))
    found, out, err = gptflow("train", "--resume", "last", "--json")
    assert found == 0, err
    assert json.loads(out)["state"] == "done"


def test_an_adapter_that_was_swapped_for_a_pickle_is_neither_promoted_nor_measured(
    gptflow: Invoke, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(rows())
    code, _, err = gptflow("train", "tiny.topic", "--data", "rows.jsonl", *QUICK)
    assert code == 0, err
    [folder] = (tmp_path / "data" / "adapters" / "topic").glob("2*")
    weights = folder / HEAD_WEIGHTS
    whole = weights.read_bytes()
    for content, told in (
        (pickle.dumps({"label.weight": [1.0]}), "pickle"),
        ((2**63).to_bytes(8, "little") + whole[8:], "9223372036854775808"),
    ):
        weights.write_bytes(content)
        for args in (
            ("adapters", "promote", "topic", "--force"),
            ("eval", "tiny.topic", "--data", "rows.jsonl", "--adapter", "topic"),
        ):
            code, _, err = gptflow(*args)
            assert code == 1
            assert "error [GF706]" in err
            assert told in err
    assert not (tmp_path / "data" / "adapters" / "topic" / "alias.json").exists()


def test_an_adapter_of_another_model_is_not_measured(
    gptflow: Invoke, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(rows())
    code, _, err = gptflow("train", "tiny.topic", "--data", "rows.jsonl", *QUICK)
    assert code == 0, err
    code, _, err = gptflow(
        "eval", "tiny.topic", "--data", "rows.jsonl", "--adapter", "topic",
        "--model", str(tiny.model("gpt2").path),
    )  # fmt: skip
    assert code == 1
    assert "error [GF707]" in err
