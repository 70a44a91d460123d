"""The recipe of answer matching, on a few dialogues and the tiny model."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptflow.plugins import Registry
from gptflow.testing import registry_of
from gptflow.training.data.reading import read

Invoke = Callable[..., tuple[int, str, str]]

PLUGINS = Path(__file__).parents[3] / "plugins"
THINGS = ("train", "table", "hotel", "movie", "song")
DIALOGUES = 60


def turn(who: str, text: str, act: str, intent: str | None = None) -> dict[str, Any]:
    return {"s": who, "t": text, "svc": "Shop", "intent": intent, "acts": [act]}


def dialogue(number: int) -> dict[str, Any]:
    thing = THINGS[number % len(THINGS)]
    return {
        "id": f"d{number:02}",
        "turns": [
            turn("u", f"A {thing} for  {number}, please", "INFORM", "Find"),
            turn("a", f"Which kind{number} of {thing}{number}?", "REQUEST"),
            turn("u", f"Number {number}", "INFORM", "Find"),
            turn("a", f"Booked: place{number}, seat{number}, {thing}.", "NOTIFY_SUCCESS"),
            turn("u", "Thanks", "THANK_YOU", "Find"),
            turn("a", "Have a very nice day.", "GOODBYE"),
        ],
    }


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """The module of the recipe, and the rows that it makes."""
    monkeypatch.syspath_prepend(PLUGINS)
    from shipped import answer_match

    folder = tmp_path / "public" / "sgd_dev_subset"
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(dialogue(number)) + "\n" for number in range(DIALOGUES))
    (folder / "dialogues.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    files = answer_match.prepare(tmp_path / "public", tmp_path / "rows")
    return SimpleNamespace(
        module=answer_match,
        paths={file.split: str(file.path) for file in files},
        rows={file.split: read(file.path, "scores").require() for file in files},
    )


def test_no_dialogue_is_in_two_splits_nor_its_replies(recipe: SimpleNamespace) -> None:
    for what in ("group", "query", "candidate"):
        seen = [{getattr(row, what) for row in rows} for rows in recipe.rows.values()]
        assert all(seen)
        assert len(set.union(*seen)) == sum(map(len, seen)), what


def test_each_question_has_one_right_reply_and_wrong_ones_from_elsewhere(
    recipe: SimpleNamespace,
) -> None:
    said = {d["id"]: [t["t"] for t in d["turns"]] for d in map(dialogue, range(DIALOGUES))}
    for split, rows in recipe.rows.items():
        by_query = defaultdict(list)
        for row in rows:
            by_query[row.query].append(row)
        for query, own in by_query.items():
            assert "  " not in query
            assert len({row.candidate for row in own}) == recipe.module.CANDIDATES[split]
            [right] = [row for row in own if row.score == 1]
            [group] = {row.group for row in own}
            assert [row.candidate in said[group] for row in own] == [row is right for row in own]
            place = said[group].index(right.candidate)
            assert query.splitlines()[-1] == " ".join(said[group][place - 1].split())
            assert len(query.splitlines()) == (1 if place == 1 else 2)


def test_courtesies_and_what_is_too_long_are_not_learnt(recipe: SimpleNamespace) -> None:
    long = dialogue(1)
    long["turns"][1]["t"] = "very " * 60
    found = list(recipe.module.exchanges(long))
    assert found == []
    assert len(list(recipe.module.exchanges(dialogue(1)))) == 2


def test_replies_that_say_the_same_are_not_wrong(recipe: SimpleNamespace) -> None:
    talks = [dialogue(number) for number in (0, 5, 10, 15, 20, 25)]
    for number, talk in enumerate(talks):
        talk["turns"][1]["t"] = f"Which train do you wish for, {'sir' if number else 'madam'}?"
    rows = recipe.module.rows(talks, "train", set())
    asked = [row for row in rows if row["query"].startswith("A ")]
    assert asked
    assert not any(row["candidate"].startswith("Which") for row in asked if row["score"] == 0)


def test_the_task_is_trained_measured_and_served(
    gptflow: Invoke, recipe: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gptflow_customer_service.answer_matching import MatchAnswer

    monkeypatch.setenv("GPTFLOW_DTYPE", "float32")
    monkeypatch.setattr(Registry, "load", lambda only=None: registry_of(MatchAnswer()))
    test = recipe.paths["test"]
    asked = json.dumps({"question": "Number 7", "candidates": ["I have booked it.", "Which one?"]})

    code, out, err = gptflow("eval", "customer.match", "--data", test, "--base", "--json")
    assert code == 0, err
    assert set(json.loads(out)["reports"]["score"]["floors"]) == {"bm25"}
    code, out, err = gptflow("run", "customer.match", asked, "--local", "--json")
    assert json.loads(out)["output"]["by"] == "bm25"

    code, out, err = gptflow(
        "train", "customer.match", "--data", recipe.paths["train"], "--dev", recipe.paths["dev"],
        "--test", test, "--layers", "upper", "--rank", "4", "--batch", "8", "--epochs", "1",
        "--json",
    )  # fmt: skip
    assert code == 0, err
    made = json.loads(out)["metrics"]["mrr"]
    [metrics] = (tmp_path / "data" / "adapters" / "answer_match").glob("2*/metrics.json")
    assert "test.jsonl:" in metrics.read_text()
    assert not any(word in metrics.read_text() for word in ("please", "Number"))  # the data's own
    code, out, err = gptflow(
        "eval", "customer.match", "--data", test, "--adapter", "answer_match", "--json"
    )
    assert code == 0, err
    found = json.loads(out)["reports"]["score"]["metrics"]["mrr"]["value"]
    assert found == pytest.approx(made["value"])

    code, _, err = gptflow("adapters", "promote", "answer_match", "--force")
    assert code == 0, err
    code, out, err = gptflow("run", "customer.match", asked, "--local", "--json")
    result = json.loads(out)
    by = "adapter" if made["value"] > made["floor"] else "bm25"
    assert result["output"]["by"] == by
    assert bool(result["provenance"]["adapter"]) == (by == "adapter")
