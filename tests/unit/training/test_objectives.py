"""What each objective learns from rows, token by token."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import BadLabel, BadRows, NotTrainable, OneClass
from gptflow.training.backbone import Backbone
from gptflow.training.data.rows import (
    Dialogue,
    LabelledText,
    Origin,
    PlainText,
    ScoredPair,
    TaggedText,
    Turn,
)
from gptflow.training.data.tokens import tag_tokens, tokens_of
from gptflow.training.example import Example
from gptflow.training.heads import TrainedHeads, pool
from gptflow.training.objectives.choice import choose_objective
from gptflow.training.recording import TaskRecorder
from gptflow.training.settings import TrainingSettings

AT = Origin("rows", 1)


@pytest.fixture
def vocabulary(tiny: SimpleNamespace) -> Vocabulary:
    return Vocabulary.from_folder(tiny.model().path)


def objective(task: Any, vocabulary: Vocabulary, row: Any, **settings: Any) -> Any:
    task.check()
    recorder = TaskRecorder(task, vocabulary, context=256)
    return choose_objective(recorder, vocabulary, row, TrainingSettings.of(**settings))


def tagged(text: str, *spans: tuple[int, int, str]) -> TaggedText:
    tokens = tokens_of(text)
    return TaggedText(origin=AT, text=text, tokens=tokens, tags=tag_tokens(tokens, spans))


def hidden_for(example: Example, rows: int) -> torch.Tensor:
    return torch.randn(1, len(example.texts[0]), rows, generator=torch.Generator().manual_seed(1))


class TestTags:
    TEXT = "Zoë-Max lives in São Paulo 🌞"
    SPANS = ((0, 3, "name"), (17, 26, "place"))

    def test_labels_go_to_the_second_copys_tokens(
        self, tiny: SimpleNamespace, vocabulary: Vocabulary
    ) -> None:
        row = tagged(self.TEXT, *self.SPANS)
        learnt = objective(tiny.Names(), vocabulary, row)
        learnt.prepare([row])
        assert learnt.echo
        [example] = learnt.examples([row])
        target, ids = example.target, example.texts[0].ids
        assert target.first + len(target.tokens) == len(ids)  # the prompt ends with the text
        assert target.first > len(ids) / 2 - 2
        marked = {1: "", 3: ""}
        for token, tag in zip(target.tokens, target.tags, strict=True):
            if tag:
                begin = tag - (tag + 1) % 2
                marked[begin] += self.TEXT[token.start : token.end]
        # A character of several tokens is seen once by each.
        assert "".join(dict.fromkeys(marked[1])) == "Zoë"
        assert set("SãoPaulo") <= set(marked[3]) <= set(" SãoPaulo")
        assert sum(tag in (1, 3) for tag in target.tags) == 2
        assert example.weight == len(target.tags)

    def test_perfect_logits_give_the_spans_back(
        self, tiny: SimpleNamespace, vocabulary: Vocabulary
    ) -> None:
        row = tagged(self.TEXT, *self.SPANS)
        learnt = objective(tiny.Names(), vocabulary, row)
        learnt.prepare([row])
        examples = learnt.examples([row])
        logits = torch.nn.functional.one_hot(torch.tensor(examples[0].target.tags), 5) * 20.0
        answers = learnt.answers([row], examples, [logits])
        assert answers["tags"].metrics()["entity_f1"] == 1.0

    def test_what_cannot_be_placed_is_refused(
        self, tiny: SimpleNamespace, vocabulary: Vocabulary
    ) -> None:
        row = tagged("Ada lives", (0, 3, "boat"))
        learnt = objective(tiny.Names(), vocabulary, row)
        with pytest.raises(BadLabel, match="'boat'"):
            learnt.examples([row])
        with pytest.raises(BadRows, match="changes the text"):
            learnt.examples([tagged("Ada\u200b lives", (0, 3, "name"))])
        with pytest.raises(OneClass):
            learnt.prepare([tagged("nothing here")])


class TestLabels:
    def row(self, label: str) -> LabelledText:
        return LabelledText(origin=AT, text=f"the {label} is bad", labels={"label": label})

    def test_rare_labels_weigh_more_where_asked(
        self, tiny: SimpleNamespace, vocabulary: Vocabulary
    ) -> None:
        rows = [self.row("card")] * 16 + [self.row("cash")] * 4
        plain = objective(tiny.Topic(), vocabulary, rows[0])
        plain.prepare(rows)
        assert {e.weight for e in plain.examples(rows)} == {1.0}
        learnt = objective(tiny.Topic(), vocabulary, rows[0], class_weights=True)
        learnt.prepare(rows)
        weights = [example.weight for example in learnt.examples(rows)]
        assert weights[-1] == pytest.approx(2 * weights[0])
        assert sum(weights) == pytest.approx(len(rows))

    def test_the_energy_of_texts_in_scope_is_that_of_the_share_asked_for(
        self, tiny: SimpleNamespace, vocabulary: Vocabulary
    ) -> None:
        rows = [self.row("cash")] * 10
        outputs = [{"label": torch.full((len(tiny.TOPICS),), float(n))} for n in range(10)]
        learnt = objective(tiny.Topic(), vocabulary, rows[0], in_scope=0.8)
        [spec] = learnt.specs(rows, learnt.examples(rows), outputs).values()
        assert spec.energy == pytest.approx(2 + math.log(len(tiny.TOPICS)))
        plain = objective(tiny.Topic(), vocabulary, rows[0])
        [spec] = plain.specs(rows, plain.examples(rows), outputs).values()
        assert spec.energy is None

    def test_the_loss_is_the_cross_entropy_of_the_pooled_state(
        self, tiny: SimpleNamespace, vocabulary: Vocabulary
    ) -> None:
        row = self.row("cash")
        learnt = objective(tiny.Topic(), vocabulary, row)
        heads = TrainedHeads(learnt.heads, 8)
        torch.nn.init.normal_(heads["label"].weight, generator=torch.Generator().manual_seed(2))
        examples = learnt.examples([row])
        hidden = hidden_for(examples[0], 8)
        logits = heads["label"](hidden[0, -1])
        expected = torch.logsumexp(logits, 0) - logits[tiny.TOPICS.index("cash")]
        loss = learnt.loss(None, heads, examples, hidden)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_padding_is_not_pooled(self) -> None:
        hidden = torch.arange(12.0).reshape(2, 3, 2)
        assert pool(hidden, [2, 3], "last").tolist() == [[2, 3], [10, 11]]
        assert pool(hidden, [2, 3], "mean").tolist() == [[1, 2], [8, 9]]


class TestScores:
    ROWS = tuple(
        ScoredPair(origin=AT, query=q, candidate=c, score=s)
        for q, c, s in (("a", "x", 1), ("b", "x", 0), ("a", "y", 0), ("a", "z", 0.5), ("b", "y", 1))
    )

    def test_candidates_of_a_query_are_learnt_together(
        self, tiny: SimpleNamespace, vocabulary: Vocabulary
    ) -> None:
        learnt = objective(tiny.Fit(), vocabulary, self.ROWS[0])
        learnt.prepare(self.ROWS)
        first, second = learnt.examples(self.ROWS)
        assert first.target == ((0, 1), (3, 0.5), (2, 0))
        assert second.target == ((4, 1), (1, 0))
        assert (first.weight, second.weight) == (3.0, 1.0)
        heads = TrainedHeads(learnt.heads, 4)
        hidden = torch.zeros(5, max(first.longest, second.longest), 4)
        # At first every pair is as likely as not.
        loss = learnt.loss(None, heads, [first, second], hidden)
        assert loss.item() == pytest.approx(4 * 0.6931, abs=1e-3)

    def test_single_scores_are_between_0_and_1(
        self, tiny: SimpleNamespace, vocabulary: Vocabulary
    ) -> None:
        learnt = objective(tiny.Fit(), vocabulary, self.ROWS[0], pairwise=False)
        learnt.prepare(self.ROWS)
        assert [len(e.texts) for e in learnt.examples(self.ROWS)] == [1] * 5
        odd = ScoredPair(origin=AT, query="a", candidate="b", score=7)
        with pytest.raises(BadRows, match="score 7"):
            learnt.prepare([*self.ROWS, odd])

    def test_rows_without_pairs_are_refused(
        self, tiny: SimpleNamespace, vocabulary: Vocabulary
    ) -> None:
        learnt = objective(tiny.Fit(), vocabulary, self.ROWS[0])
        lone = [ScoredPair(origin=AT, query=str(n), candidate="x", score=n % 2) for n in range(4)]
        with pytest.raises(OneClass, match="two candidates"):
            learnt.prepare(lone)
        with pytest.raises(OneClass, match="same score"):
            learnt.prepare(lone[::2])


class TestDialogues:
    ROW = Dialogue(
        origin=AT,
        turns=(
            Turn("user", "my card was lost"),
            Turn("assistant", "refund the card"),
            Turn("user", "is it <|im_end|> good?"),
            Turn("assistant", "it is good"),
        ),
    )

    def test_the_loss_is_on_what_the_assistant_said(
        self, tiny: SimpleNamespace, vocabulary: Vocabulary
    ) -> None:
        learnt = objective(tiny.Reply(), vocabulary, self.ROW)
        learnt.prepare([self.ROW])
        [example] = learnt.examples([self.ROW])  # both answers in one pass
        ids = example.texts[0].ids
        said = [ids[place + 1] for place in example.target]
        end = vocabulary.end_id
        assert end == 2
        assert said.count(end) == 2
        assert vocabulary.decode([i for i in said if i != end]) == "refund the cardit is good"
        assert said[-1] == end == ids[-1]
        # The user's own `<|im_end|>` is text, and nobody learns to say it.
        assert ids.count(end) == 4
        assert example.weight == len(said)

    def test_answers_are_learnt_one_by_one_where_prompts_do_not_continue(
        self, tiny: SimpleNamespace, vocabulary: Vocabulary
    ) -> None:
        task = tiny.Reply()
        learnt = objective(task, vocabulary, self.ROW)
        recorded = learnt.recorder.record
        # As of a task that shortens what came before.
        learnt.recorder.record = lambda inputs, rows: recorded(
            [{"messages": value["messages"][-1:]} for value in inputs]
        )
        assert len(learnt.examples([self.ROW])) == 2

    def test_the_loss_in_parts_is_the_loss(
        self, tiny: SimpleNamespace, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from gptflow.training.objectives import token_losses

        learnt = objective(tiny.Reply(), vocabulary, self.ROW)
        examples = learnt.examples([self.ROW])
        backbone = Backbone.load(tiny.model().path, TrainingSettings.of(rank=2), model_id="tiny")
        heads = TrainedHeads({}, backbone.width)
        found = []
        for rows in (3, 1000):
            monkeypatch.setattr(token_losses, "_ROWS", rows)
            hidden = backbone.hidden([examples[0].texts[0].ids])
            loss = learnt.loss(backbone, heads, examples, hidden)
            loss.backward()
            gradient = sum(
                float(p.grad.abs().sum())
                for p in backbone.parameters.values()
                if p.grad is not None
            )
            found.append((loss.item(), gradient))
            for parameter in backbone.parameters.values():
                parameter.grad = None
        assert found[0] == pytest.approx(found[1], rel=1e-4)

    def test_an_input_without_turns_is_not_trained_on_dialogues(
        self, tiny: SimpleNamespace, vocabulary: Vocabulary
    ) -> None:
        with pytest.raises(NotTrainable, match="Classify head is not trained on dialogues"):
            objective(tiny.Topic(), vocabulary, self.ROW)


def test_other_rows_train_no_head(tiny: SimpleNamespace, vocabulary: Vocabulary) -> None:
    with pytest.raises(NotTrainable, match="Raw text"):
        objective(tiny.Topic(), vocabulary, PlainText(origin=AT, text="x"))
