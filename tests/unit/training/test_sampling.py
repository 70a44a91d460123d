"""Several answers to each prompt: a discriminator learnt from them, the best of n, preferences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptflow import Score
from gptflow.cli import main, session
from gptflow.errors import (
    AdapterNotFound,
    BadRows,
    ConfigError,
    EmptyData,
    InvalidInput,
    NotTrainable,
)
from gptflow.plugins import Registry
from gptflow.testing import ScriptedEngine, registry_of
from gptflow.training.data.reading import preferences, scored
from gptflow.training.data.rows import Origin, Turn
from gptflow.training.sampling import (
    Question,
    Sampled,
    checked,
    judged,
    load_check,
    preference_rows,
    read_questions,
    score_rows,
)

Invoke = Callable[..., tuple[int, str, str]]

QUESTION = Question(origin=Origin("q.jsonl", 1), input={"text": "why"}, prompt="why")


@pytest.fixture
def gptflow(
    tiny: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Iterator[Invoke]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTFLOW_MODEL", str(tiny.model().path))
    monkeypatch.setenv("GPTFLOW_DATA_DIR", str(tmp_path / "data"))
    registry = registry_of(tiny.Reply(), tiny.Fit(), tiny.Topic())
    monkeypatch.setattr(Registry, "load", lambda only=None: registry)
    session._load_registry.cache_clear()

    def invoke(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(args)
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    yield invoke
    session._load_registry.cache_clear()


def longest(input: Mapping[str, Any], answer: str) -> float:
    """A check by name, as a user would write one."""
    return float(len(answer))


def test_from_dialogues_to_a_discriminator_to_preferences_to_dpo(
    gptflow: Invoke, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    talk = str(tiny.jsonl(tmp_path / "talk.jsonl", tiny.dialogue_rows()))
    args = (
        "data", "sample", "tiny.reply", talk, "--out", "drawn", "-n", "4",
        "--temperature", "1.5", "--json",
    )  # fmt: skip
    code, out, err = gptflow(*args)
    assert code == 0, err
    told = json.loads(out)
    assert told["prompts"] == 48
    assert told["answers"] == 4 * 48
    assert told["preferences.jsonl"] == 0
    rows = scored(Path("drawn/scores.jsonl")).require()
    assert {row.score for row in rows} == {0.0, 1.0}
    assert sum(row.score for row in rows) == 48
    assert rows[0].query == "my card 0"
    drawn = Path("drawn/samples.jsonl").read_bytes()

    code, _, err = gptflow(*args, "--judge", "tiny.fit")
    assert code == 4
    assert "gptflow adapters promote fit" in err
    code, out, err = gptflow(
        "train", "tiny.fit", "--data", "drawn/scores.jsonl", "--rank", "4", "--batch", "8",
        "--epochs", "4", "--learning-rate", "3e-3", "--head-learning-rate", "1e-2", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["metrics"]["mrr"]["value"] > 0.9  # it tells people from the model
    assert gptflow("adapters", "promote", "fit", "--force")[0] == 0

    code, out, err = gptflow(*args, "--judge", "tiny.fit")
    assert code == 0, err
    told = json.loads(out)
    assert told["mean value of the best"] > told["mean value"]
    assert Path("drawn/samples.jsonl").read_bytes() == drawn  # nothing was drawn again
    pairs = preferences(Path("drawn/preferences.jsonl")).require()
    assert told["preferences.jsonl"] == len(pairs) > 24
    code, out, err = gptflow("data", "check", "drawn/preferences.jsonl")
    assert code == 0, out + err
    code, out, err = gptflow(
        "train", "tiny.reply", "--data", "drawn/preferences.jsonl", "--rank", "4", "--batch", "8",
        "--learning-rate", "3e-3", "--epochs", "2", "--json",
    )  # fmt: skip
    assert code == 0, err
    record = json.loads(out)
    assert record["settings"]["beta"] == 0.1
    assert record["metrics"]["preference_accuracy"]["value"] > 0.5
    assert record["version"].startswith("reply@")


def test_drawing_goes_on_where_it_was_stopped(
    gptflow: Invoke, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    rows = [{"messages": [{"role": "user", "content": f"my {t}"}]} for t in tiny.TOPICS[:5]]
    given = str(tiny.jsonl(tmp_path / "asked.jsonl", rows))
    args = (
        "data", "sample", "tiny.reply", given, "--out", "drawn", "-n", "2", "--json",
        "--check", f"{__name__}:longest",
    )  # fmt: skip
    # A chat's turns look like a dialogue; `answer` says that they are inputs of the task.
    for row in rows:
        row["answer"] = "refund it"  # type: ignore[assignment]
    tiny.jsonl(tmp_path / "asked.jsonl", rows)
    code, out, err = gptflow(*args)
    assert code == 0, err
    whole = Path("drawn/samples.jsonl").read_text().splitlines()
    assert len(whole) == 5
    Path("drawn/samples.jsonl").write_text("\n".join(whole[:2]) + "\n" + whole[2][:20])
    code, again, err = gptflow(*args)
    assert code == 0, err
    assert json.loads(again) == json.loads(out)
    lines = Path("drawn/samples.jsonl").read_text().splitlines()
    assert lines[:2] == whole[:2]
    assert lines[3:] == whole[2:]  # the same draws as before
    pairs = preferences(Path("drawn/preferences.jsonl")).require()
    assert all(len(row.chosen) > len(row.rejected) for row in pairs)
    assert pairs[0].input == {"messages": [{"role": "user", "content": "my card"}]}


def test_what_cannot_be_sampled_is_said(
    gptflow: Invoke, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    talk = str(tiny.jsonl(tmp_path / "talk.jsonl", tiny.dialogue_rows()))
    asked = str(tiny.jsonl(tmp_path / "asked.jsonl", [{"text": "a"}]))
    for args, code, words in (
        (("tiny.reply", talk, "--judge", "tiny.fit", "--check", "a:b"), 2, "do not go together"),
        (("tiny.reply", talk, "--check", "json:no_such"), 10, "GF100"),
        (("tiny.reply", talk, "--check", "no_such_module:f"), 10, "GF100"),
        (("tiny.reply", talk, "--judge", "tiny.reply"), 13, "cannot judge"),
        (("tiny.reply", "nothing.jsonl"), 3, "GF809"),
        (("tiny.reply", talk, "--kind", "labels"), 2, "dialogues"),
        (("tiny.topic", asked), 13, "only Generate draws answers"),
        (("tiny.repl", talk), 4, "tiny.reply"),
    ):
        found, _, err = gptflow("data", "sample", *args, "--out", "drawn", "-n", "2")
        assert found == code, (args, err)
        assert words in err


def test_questions_are_dialogues_or_inputs(tiny: SimpleNamespace, tmp_path: Path) -> None:
    task = tiny.Reply()
    talk = read_questions(tiny.jsonl(tmp_path / "t.jsonl", tiny.dialogue_rows()[:1]), task)
    assert [q.human for q in talk] == ["refund the card", "it is good"]
    assert talk[1].before == (Turn("user", "my card 0"), Turn("assistant", "refund the card"))
    assert talk[1].asked == "my card 0\nrefund the card\nis it good?"
    assert all(question.whole for question in talk)
    path = tmp_path / "asked.jsonl"
    fit = tiny.Fit()
    path.write_text('{"text": "a", "items": []}\n{"items": []}\nno\n{"text": "b", "items": 3}\n')
    with pytest.raises(BadRows) as bad:
        read_questions(path, fit)
    assert [problem.origin.line for problem in bad.value.problems] == [2, 3, 4]
    path.write_text('{"text": "a", "items": [], "human": "b"}\n')
    [question] = read_questions(path, fit, answer="human")
    assert (question.human, question.whole, question.asked) == ("b", False, "a")
    path.write_text("\n")
    with pytest.raises(EmptyData):
        read_questions(path, fit)


def test_rows_of_samples() -> None:
    human = Question(origin=Origin("q", 1), input={}, prompt="why", human="so")
    drawn = Sampled(human, ("a", "a", " ", "so", "b"))
    assert {(row.candidate, row.score) for row in score_rows([drawn])} == {
        ("a", 0.0), ("so", 1.0), ("b", 0.0),
    }  # fmt: skip
    assert score_rows([Sampled(QUESTION, ("a", "b"))]) == []
    assert preference_rows([drawn]) == []
    valued = Sampled(QUESTION, ("a", "", "b", "c"), (0.5, 9.0, 0.7, 0.1))
    [row] = preference_rows([valued])
    assert (row.prompt, row.chosen, row.rejected, row.input) == ("why", "b", "c", None)
    assert preference_rows([Sampled(QUESTION, ("b", "b "), (0.5, 0.7))]) == []
    assert preference_rows([Sampled(QUESTION, ("a", "b"), (0.5, 0.7))], margin=0.3) == []
    assert preference_rows([Sampled(QUESTION, ("", " "), (0.5, 0.7))]) == []
    assert {row.score for row in score_rows([valued])} == {0.5, 0.7, 0.1}


def test_a_check_is_asked_once_for_each_answer_and_must_give_a_number() -> None:
    asked: list[str] = []

    def check(input: Mapping[str, Any], answer: str) -> float:
        asked.append(answer)
        return {"a": 1.0, "b": float("nan")}[answer]

    [found] = checked(check, [Sampled(QUESTION, ("a", "a"))])
    assert found.values == (1.0, 1.0)
    assert asked == ["a"]
    with pytest.raises(InvalidInput, match=r"gives nan .* q\.jsonl:1"):
        checked(check, [Sampled(QUESTION, ("b",))])
    with pytest.raises(InvalidInput, match="KeyError"):
        checked(check, [Sampled(QUESTION, ("c",))])
    assert load_check(f"{__name__}:longest") is longest
    with pytest.raises(ConfigError, match="no function"):
        load_check("json:__doc__")


def test_a_judge_is_a_score_head_that_is_served(tiny: SimpleNamespace) -> None:
    engine = ScriptedEngine()
    with pytest.raises(AdapterNotFound, match="fit"):
        judged(engine, tiny.Fit(), [Sampled(QUESTION, ("a",))])
    with pytest.raises(NotTrainable):
        judged(engine, tiny.Topic(), [Sampled(QUESTION, ("a",))])


def test_blank_answers_are_not_judged(tiny: SimpleNamespace) -> None:
    class Judge(tiny.Fit):  # type: ignore[name-defined,misc]
        head = Score(each="items")

    engine = ScriptedEngine()
    blank, other = judged(
        engine, Judge(), [Sampled(QUESTION, (" ", "")), Sampled(QUESTION, ("a", "", "b"))]
    )
    assert blank == Sampled(QUESTION, ())
    assert other.answers == ("a", "b")
    assert len(other.values) == 2
