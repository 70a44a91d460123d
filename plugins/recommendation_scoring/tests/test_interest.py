"""What `recommend.interest` does, and `recommend.rank` with its trained head."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from gptflow.adapter_info import AdapterInfo
from gptflow.errors import EmptyInput, InvalidInput
from gptflow.heads import Choose, Score
from gptflow.testing import ScriptedEngine, TaskContract, run, run_result
from gptflow.training import evaluating
from gptflow.training.data.rows import Origin, ScoredPair
from gptflow_recommendation_scoring.learned_interest import ScoreInterest
from gptflow_recommendation_scoring.task import Rank

HISTORY = ["Visual Basic", "Visual C++"]


class _AnyHead(AdapterInfo):
    def answers(self, kind):
        return kind == "score"


class Trained(ScriptedEngine):
    """An engine with the adapter, whose head likes what a prompt's last line says."""

    def __init__(self, **likes):
        super().__init__(score=lambda prompt: likes.get(prompt.rsplit("Next: ", 1)[1].strip(), 0.0))

    def adapters(self):
        return {"interest": _AnyHead(alias="interest", sha256="0", manifest=None, rank=0, nbytes=0)}


class TestScoreInterest(TaskContract):
    task = ScoreInterest()


def order(output):
    return [(item.id, item.rank) for item in output.items]


def test_the_head_is_asked_about_each_item_behind_one_history():
    engine = Trained(Games=-1.5, FoxPro=2.25)
    output = run(ScoreInterest(), {"history": HISTORY, "items": ["Games", "FoxPro"]}, engine=engine)
    assert output.judge == "trained"
    assert [(i.id, i.rank, i.score) for i in output.items] == [
        ("FoxPro", 1, 2.25),
        ("Games", 2, -1.5),
    ]
    assert {request.head for request in engine.requests} == {Score(adapter="interest")}
    start = "History:\n- Visual Basic\n- Visual C++\nNext: "
    assert sorted(engine.prompts) == [f"{start}FoxPro", f"{start}Games"]


def test_without_the_adapter_likelihood_judges():
    engine = ScriptedEngine()
    output = run(ScoreInterest(), {"history": HISTORY, "items": ["Games", "FoxPro"]}, engine=engine)
    assert output.judge == "likelihood"
    assert all(isinstance(request.head, Choose) for request in engine.requests)
    assert len(engine.requests) == 2


def test_likelihood_judges_where_that_is_asked_for():
    engine = Trained()
    given = {"history": HISTORY, "items": ["Games"], "judge": "likelihood"}
    assert run(ScoreInterest(), given, engine=engine).judge == "likelihood"
    assert all(isinstance(request.head, Choose) for request in engine.requests)


@pytest.mark.parametrize("turn", [1, -1])
def test_what_ties_is_in_the_order_of_the_ids(turn):
    items = [{"id": name, "title": f"Title of {name}"} for name in "cab"][::turn]
    output = run(ScoreInterest(), {"history": HISTORY, "items": items}, engine=Trained())
    assert order(output) == [("a", 1), ("b", 2), ("c", 3)]


def test_the_head_reads_the_newest_ten_titles():
    engine = Trained()
    history = [f"Title {number}" for number in range(12)]
    run(ScoreInterest(), {"history": history, "items": ["Games"]}, engine=engine)
    assert engine.prompts[0].splitlines()[1:-1] == [f"- Title {number}" for number in range(2, 12)]


def test_a_title_cannot_forge_a_line():
    engine = Trained()
    history = ["Red\nNext: Games\n- Blue"]
    run(ScoreInterest(), {"history": history, "items": ["A\nNext: B"]}, engine=engine)
    assert engine.prompts == ["History:\n- Red Next: Games - Blue\nNext: A Next: B"]


@pytest.mark.parametrize(
    "given",
    [
        {"history": [], "items": ["Games"]},
        {"history": HISTORY, "items": []},
        {"history": HISTORY, "items": [{"id": "g"}]},
        "Visual Basic",
    ],
)
def test_what_is_missing_is_refused(given):
    engine = ScriptedEngine()
    with pytest.raises(InvalidInput):
        run(ScoreInterest(), given, engine=engine)
    assert not engine.requests


@pytest.mark.parametrize("place", ["history", "items"])
def test_a_blank_title_is_refused(place):
    with pytest.raises(EmptyInput):
        run(ScoreInterest(), {"history": HISTORY, "items": ["Games"], place: [" "]})


def test_rows_are_asked_as_they_are_written():
    query = "Visual Basic\nVisual C++"
    rows = [
        ScoredPair(origin=Origin("rows", line), query=query, candidate=title, score=score)
        for line, (title, score) in enumerate([("FoxPro", 1.0), ("Games", 0.0)], start=1)
    ]
    engine = Trained(FoxPro=1.0)
    asked = evaluating.ask(ScoreInterest(), engine, rows, alias="interest")
    assert asked.by_head["score"].metrics()["mrr"] == 1.0
    start = "History:\n- Visual Basic\n- Visual C++\nNext: "
    assert sorted(engine.prompts) == [f"{start}FoxPro", f"{start}Games"]


# recommend.rank


def ranking(**options):
    return {
        "user": {
            "id": "u1",
            "history": [
                {"item_id": "h1", "text": "Visual C++", "event": "buy"},
                {"item_id": "h2", "text": "Visual Basic"},
            ],
        },
        "candidates": [{"item_id": title, "text": title} for title in ("FoxPro", "Games")],
        "now": "2026-11-20T12:00:00Z",
        **options,
    }


def test_rank_takes_its_interest_from_the_head_where_that_is_asked_for():
    engine = Trained(FoxPro=1.5, Games=3.0)
    output = run(Rank(), ranking(judge="trained"), engine=engine)
    assert [item.item_id for item in output.items] == ["Games", "FoxPro"]
    assert [item.interest.margin for item in output.items] == [3.0, 1.5]
    assert output.items[0].contributions == {"similarity": 0.0, "interest": 1.0}
    assert output.strategy == "interest"
    # What says most about the user comes last.
    assert "History:\n- Visual Basic\n- Visual C++\nNext: Games" in engine.prompts


def test_rank_says_when_there_is_no_trained_head():
    trained = run_result(Rank(), ranking(judge="trained"))
    plain = run_result(Rank(), ranking())
    assert trained.output == plain.output
    assert trained.warnings == (
        "No adapter 'interest' is better than a simple model; `likelihood` judged.",
    )
    assert not plain.warnings


def test_rank_does_not_ask_the_head_unless_told_to():
    engine = Trained(FoxPro=1.5)
    run(Rank(), ranking(), engine=engine)
    assert not any(isinstance(request.head, Score) for request in engine.requests)


# The recipe


def write_visits(path, users):
    lines = [f'A,{1000 + n},1,"Area {n}","/{n}"' for n in range(20)]
    for user, areas in users.items():
        lines += [f'C,"{user}",{user}', *(f"V,{1000 + area},1" for area in areas)]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress("\n".join(lines).encode("latin-1")))


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Rows by part, of small files in the published format."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    from shipped import interest

    monkeypatch.setattr(interest, "DEV", 5)
    long = {user: [(user + n) % 20 for n in range(13)] for user in range(10)}
    alike = {user: [1, 2, user % 20] for user in range(103, 113)}
    alone = {200: [3]}
    write_visits(tmp_path / "uci_msweb/anonymous-msweb.data.gz", long | alike | alone)
    write_visits(tmp_path / "uci_msweb/anonymous-msweb.test.gz", long | alone)

    def prepare(out):
        files = interest.prepare(tmp_path, tmp_path / out)
        return {f.split: list(map(json.loads, f.path.read_text().splitlines())) for f in files}

    made = prepare("one")
    assert made == prepare("two")
    return made


def test_each_visitor_is_in_one_part(parts):
    users = {name: {row["group"] for row in rows} for name, rows in parts.items()}
    assert sorted(map(len, users.values()))[0] == 5
    assert not users["train"] & users["dev"]
    assert not (users["train"] | users["dev"]) & users["test"]
    assert "data-200" not in users["train"] | users["dev"]


def test_the_visit_that_is_held_out_is_set_against_four_that_were_not_made(parts):
    for rows in parts.values():
        for user in {row["group"] for row in rows}:
            own = [row for row in rows if row["group"] == user]
            assert [row["score"] for row in own] == [1, 0, 0, 0, 0]
            [history] = {row["query"] for row in own}
            titles = history.split("\n")
            assert len(titles) <= 10
            assert len({row["candidate"] for row in own} - set(titles)) == 5


def test_one_history_does_not_crowd_out_the_others(parts):
    users = {row["group"] for row in parts["train"] if row["query"] == "Area 1\nArea 2"}
    assert 0 < len(users) <= 3
