"""Reports: a model beside its floors, in JSON, Markdown and pictures."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest

from gptflow.errors import UnreadableFile
from gptflow.training.data.rows import LabelledText, Origin, TaggedText
from gptflow.training.data.tokens import align
from gptflow.training.report import (
    LabelAnswers,
    RankingAnswers,
    Report,
    SampleAnswers,
    TagAnswers,
    report_labels,
    report_rankings,
    report_samples,
    report_tags,
)

pytest.importorskip("matplotlib")

LABELS = ("买入", "sell | $", "hold")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(1)
    return [
        LabelledText(
            origin=Origin("t.csv", n + 2),
            text="股票" * int(generator.integers(2, 30)) if n % 3 == 0 else "word " * (n % 17 + 1),
            labels={"label": LABELS[n % 3]},
        )
        for n in range(120)
    ]


def probs(rows, skill, seed):
    noise = np.random.default_rng(seed).dirichlet([1, 1, 1], len(rows))
    right = np.eye(3)[[LABELS.index(row.labels["label"]) for row in rows]]
    return (1 - skill) * noise + skill * right


@pytest.fixture(scope="module")
def report(rows):
    model = LabelAnswers(rows=rows, labels=LABELS, probs=probs(rows, 0.4, 2))
    floors = {
        "weak": LabelAnswers(rows=rows, labels=LABELS, probs=probs(rows, 0.0, 3)),
        "strong": LabelAnswers(rows=rows, labels=LABELS, probs=probs(rows, 0.2, 4)),
    }
    return report_labels(model, title="mood", dev=model, floors=floors, resamples=100)


def test_every_figure_stands_beside_that_of_each_floor(report):
    assert set(report.metrics) == set(report.floors["weak"]) == set(report.floors["strong"])
    page = report.to_markdown()
    header = next(line for line in page.splitlines() if "| model |" in line)
    assert header == "|  | model | weak | strong |"
    for figure in (report.metrics, *report.floors.values()):
        assert str(figure["macro_f1"]) in page


def test_the_best_floor_is_the_one_to_beat(report):
    assert report.best_floor == "strong"
    assert not report.floor_wins
    assert "The model wins" in report.to_markdown()
    gap = report.metrics["macro_f1"].value - report.floors["strong"]["macro_f1"].value
    assert report.against_floor.difference.value == pytest.approx(gap)


def test_a_floor_that_is_as_good_wins(rows):
    model = LabelAnswers(rows=rows, labels=LABELS, probs=probs(rows, 0.2, 4))
    report = report_labels(model, title="mood", floors={"same": model}, resamples=20)
    assert report.floor_wins
    assert "**The floor wins: same.**" in report.to_markdown()


def test_gates_are_missed_in_words(report):
    accuracy = report.value("accuracy")
    assert report.missed({"accuracy": accuracy, "ece": 1.0}) == ()
    assert report.missed({"accuracy": 0.999, "ece": 0.0}) == (
        f"accuracy is {accuracy:.3f}, not ≥ 0.999",
        f"ece is {report.value('ece'):.3f}, not ≤ 0",
    )


def test_the_temperature_is_that_of_the_development_split(report):
    assert report.calibration.temperature < 1  # noise makes the model too unsure
    assert report.calibration.ece < report.calibration.ece_before
    assert report.calibration.nll < report.calibration.nll_before


def test_slices_add_up_and_the_worst_errors_are_the_surest(report, rows):
    for by in ("length", "language"):
        assert sum(part.rows for part in report.slices if part.by == by) == len(rows)
    assert {part.name for part in report.slices if part.by == "language"} == {"latin", "zh"}
    assert all(worst.right != worst.answer for worst in report.worst)
    scores = [worst.score for worst in report.worst]
    assert scores == sorted(scores, reverse=True)
    assert report.worst[0].where.startswith("t.csv:")


def test_a_report_is_written_whole_and_reads_back(report, tmp_path):
    paths = report.write(tmp_path / "run")
    assert sorted(path.name for path in paths) == [
        "confusion.png",
        "reliability.png",
        "report.json",
        "report.md",
    ]
    assert Report.load(tmp_path / "run") == Report.load(tmp_path / "run" / "report.json") == report
    assert all(path.read_bytes().startswith(PNG) for path in paths if path.suffix == ".png")
    assert json.loads((tmp_path / "run/report.json").read_text("utf-8"))["title"] == "mood"
    report.write(tmp_path / "run")
    assert len(list((tmp_path / "run").iterdir())) == 4


def test_a_full_disk_leaves_the_report_that_was(report, tmp_path, monkeypatch):
    report.write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        report.write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("content", [None, "", "{}", '{"version": 2}', "[1"])
def test_what_is_no_report_is_refused(tmp_path, content):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UnreadableFile) as caught:
        Report.load(path)
    assert "gptflow eval" in caught.value.hint


def test_texts_may_be_left_out_and_cannot_break_the_page(rows):
    nasty = [
        LabelledText(origin=Origin("t", 1), text="a | b\n# <script>", labels={"label": LABELS[0]})
    ]
    model = LabelAnswers(rows=nasty, labels=LABELS, predicted=(LABELS[1],))
    report = report_labels(model, title="x", resamples=5)
    page = report.to_markdown()
    assert "a \\| b # &lt;script>" in page
    assert "sell \\| $" in page
    assert report.without_texts().worst[0].text == ""
    assert "script" not in report.without_texts().model_dump_json()


def test_figures_that_are_not_defined_are_null(rows):
    model = LabelAnswers(
        rows=rows, labels=LABELS, predicted=(LABELS[0],) * len(rows), out_of_scope=LABELS[2],
        scope=np.zeros(len(rows)),
    )  # fmt: skip
    found = report_labels(model, title="x", resamples=5)
    assert found.metrics["out_of_scope_precision"].value is None
    assert found.metrics["out_of_scope_auroc"].value == 0.5
    assert Report.model_validate_json(found.model_dump_json()) == found
    assert "–" in found.to_markdown()


def test_taggers_are_reported_by_span_and_by_token():
    text, tokens = align(["Apple", "rose"])
    rows = [
        TaggedText(origin=Origin("t", n), text=text, tokens=tokens, tags=("B-ORG", "O"))
        for n in range(12)
    ]
    model = TagAnswers(rows=rows, predicted=(("B-ORG", "O"),) * 6 + (("B-PER", "O"),) * 6)
    floor = TagAnswers(rows=rows, predicted=(("O", "O"),) * 12)
    report = report_tags(model, title="names", floors={"nothing": floor}, resamples=50)
    assert report.value("entity_f1") == 0.5
    assert [row.label for row in report.tokens[:2]] == ["O", "B-ORG"]
    assert [row.label for row in report.tokens_without_o[:2]] == ["B-ORG", "I-ORG"]
    assert report.worst[0].right == "Apple (ORG)"
    assert report.worst[0].answer == "Apple (PER)"
    page = report.to_markdown()
    assert "## Tokens, with O" in page
    assert "## Tokens, without O" in page


def test_rankings_and_samples_are_reported(tmp_path):
    ranking = report_rankings(
        RankingAnswers(ranks=np.array([1, 0, 40, 2]), names=("a", "b", "c", "d")),
        title="search",
        floors={"random": RankingAnswers(ranks=np.array([9, 9, 9, 9]))},
        resamples=20,
    )
    assert [worst.where for worst in ranking.worst] == ["b", "c", "d"]
    assert ranking.worst[0].answer == "not ranked"
    samples = report_samples(
        SampleAnswers(tried=np.full(3, 10), solved=np.array([0, 5, 10])), title="code", resamples=20
    )
    assert samples.value("pass@1") == pytest.approx(0.5)
    for report in (ranking, samples):
        assert {p.name for p in report.write(tmp_path)} == {"report.json", "report.md"}


def test_floors_of_other_rows_are_refused(rows):
    model = LabelAnswers(rows=rows, labels=LABELS, probs=probs(rows, 0.4, 2))
    floor = LabelAnswers(rows=rows[:5], labels=LABELS, predicted=(LABELS[0],) * 5)
    with pytest.raises(ValueError, match="weak answers 5 rows, not 120"):
        report_labels(model, title="x", floors={"weak": floor})


def test_rows_that_training_has_seen_are_a_slice_of_their_own(rows):
    model = LabelAnswers(rows=rows[:30], labels=LABELS, probs=probs(rows[:30], 0.4, 2))
    seen = {row.text for row in rows[:3]}
    report = report_labels(model, title="x", train=rows[:3], resamples=5)
    counts = {part.name: part.rows for part in report.slices if part.by == "in training"}
    assert counts["yes"] == sum(row.text in seen for row in rows[:30]) > 0
    assert counts["no"] == 30 - counts["yes"]
