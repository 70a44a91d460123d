"""Typos and synonyms: what they change, what they leave alone, and what is measured with them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptflow.errors import InvalidInput
from gptflow.training.data.rows import (
    Dialogue,
    LabelledText,
    Origin,
    ScoredPair,
    TaggedText,
    Token,
    Turn,
)
from gptflow.training.evaluation.answers import Answers
from gptflow.training.evaluation.labels import LabelAnswers
from gptflow.training.evaluation.perturbation import load_synonyms, perturb, synonym, typo
from gptflow.training.evaluation.robustness import against, ask, robustness

HERE = Origin("rows.jsonl", 1)


def labelled(text: str, label: str = "up") -> LabelledText:
    return LabelledText(origin=HERE, text=text, labels={"label": label})


def test_a_typo_is_one_slip_that_keeps_the_first_letter() -> None:
    kinds = set()
    for seed in range(300):
        made = typo("Keyboard", random.Random(seed))
        assert made != "Keyboard"
        assert made[0] == "K"
        kinds.add(len(made) - len("Keyboard"))
        if len(made) == 8:
            differing = [i for i in range(8) if made[i] != "Keyboard"[i]]
            assert len(differing) == 1 or (
                len(differing) == 2
                and made[differing[0]] == "Keyboard"[differing[1]]
                and differing[1] == differing[0] + 1
            )
    assert kinds == {-1, 0, 1}
    for word in ("the", "a", "我的银行卡", "1234"):
        assert typo(word, random.Random(0)) == word


def test_synonyms_are_written_as_the_word_was() -> None:
    change = synonym({"buy": ("purchase",)})
    generator = random.Random(0)
    assert [change(word, generator) for word in ("buy", "Buy", "BUY", "sell")] == [
        "purchase", "Purchase", "PURCHASE", "sell",
    ]  # fmt: skip


def test_the_table_that_comes_along_has_words_on_both_sides() -> None:
    table = load_synonyms()
    assert len(table) > 300
    assert "purchase" in table["buy"]
    assert "buy" in table["purchase"]
    assert all(word not in others for word, others in table.items())


@pytest.mark.parametrize("content", ["{", '{"a": ["b"]}', '[["a", 1]]', '["a"]', '[["a", " "]]'])
def test_a_table_of_another_shape_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "words.json"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=r"words\.json"):
        load_synonyms(path)
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_synonyms(tmp_path / "nowhere.json")


def test_links_names_and_tickers_stay_and_so_do_labels() -> None:
    text = "@FridayTrader thinks $TSLA rises tomorrow https://example.com/longpath #markets"
    for seed in range(30):
        [row] = perturb([labelled(text)], typo, share=1.0, seed=seed).rows
        assert row.labels == {"label": "up"}
        words = row.text.split()
        for kept in ("@FridayTrader", "$TSLA", "https://example.com/longpath", "#markets"):
            assert kept in words
        assert sum(a != b for a, b in zip(words, text.split(), strict=True)) == 3


def test_a_share_of_the_words_is_changed_and_always_the_same() -> None:
    text = " ".join(["something"] * 20)
    rows = [labelled(text), labelled("no ok"), labelled("我的卡丢了")]
    made = perturb(rows, typo, share=0.2, seed=1)
    assert (made.changed, made.words) == (1, 4)
    assert made.rows[1:] == tuple(rows[1:])
    assert perturb(rows, typo, share=0.2, seed=1) == made
    assert perturb(rows[::-1], typo, share=0.2, seed=1).rows == made.rows[::-1]
    assert perturb(rows, typo, share=0.2, seed=2) != made


def test_spans_move_with_their_words() -> None:
    text = "Yesterday Eleanor  visited London."
    words = ("Yesterday", "Eleanor", "visited", "London", ".")
    tokens = tuple(Token(text.index(w), text.index(w) + len(w)) for w in words)
    row = TaggedText(
        origin=HERE, text=text, tokens=tokens, tags=("O", "B-name", "O", "B-place", "O")
    )
    for seed in range(40):
        [made] = perturb([row], typo, share=1.0, seed=seed).rows
        assert made.tags == row.tags
        assert [span.label for span in made.spans] == ["name", "place"]
        assert [span.text[0] for span in made.spans] == ["E", "L"]
        assert made.text.split() == [*made.words[:3], "".join(made.words[3:])]
        assert "  " in made.text
    [made] = perturb([row], synonym({"visited": ("went to",)}), share=1.0).rows
    assert made == row  # two words are no one token


def test_queries_and_users_are_changed_and_nobody_else() -> None:
    pair = ScoredPair(origin=HERE, query="lost something", candidate="something", score=1.0)
    made, other = perturb([pair, pair], typo, share=1.0).rows
    assert made.candidate == "something"
    assert made.query == other.query != pair.query
    talk = Dialogue(origin=HERE, turns=(Turn("user", "something"), Turn("assistant", "something")))
    [said] = perturb([talk], typo, share=1.0).rows
    assert said.turns[0] != talk.turns[0]
    assert said.turns[1] == talk.turns[1]


def reader(words: Sequence[str]) -> Any:
    """A model that knows the texts in which one of these words stands."""

    def model(rows: Sequence[Any]) -> Mapping[str, Answers]:
        known = [any(word in row.text for word in words) for row in rows]
        rising = np.array(known, dtype=np.float64)
        probs = np.stack([rising, 1 - rising], axis=1)
        return {"label": LabelAnswers(rows=rows, labels=("up", "down"), probs=probs)}

    return model


def test_the_drop_is_measured_and_two_models_are_compared() -> None:
    rows = [labelled(f"Profits rose by {n} points", "up") for n in range(40)]
    rows += [labelled(f"Profits sank by {n} points", "down") for n in range(40)]
    changes = {"other words": synonym({"rose": ("climbed",)}), "typos": typo}
    brittle = ask(reader(["rose"]), rows, changes, share=1.0)
    sturdy = ask(reader(["rose", "climbed"]), rows, changes, share=1.0)
    [found] = robustness(brittle, "accuracy", resamples=50)
    assert (found.head, found.metric, found.rows, found.clean.value) == ("label", "accuracy", 80, 1)
    words = found.changed[0]
    assert (words.rows, words.words) == (40, 40)
    assert words.value.value == words.drop.value == 0.5
    assert words.drop.low is not None
    assert 0.3 < words.drop.low < 0.5
    assert robustness(sturdy, resamples=10)[0].metric == "macro_f1"
    [beside] = against(sturdy, brittle, "accuracy", resamples=50)
    assert beside.clean.value == 0
    assert beside.passed
    assert beside.changed["other words"].value == 0.5
    assert beside.less_drop["other words"] == 1
    [back] = against(brittle, sturdy, "accuracy", resamples=50)
    assert back.less_drop["other words"] is None  # nothing drops that could drop less
    [worse] = against(ask(reader([]), rows, changes), brittle, "accuracy", resamples=50)
    assert not worse.passed
