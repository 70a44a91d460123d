"""`sentiment.classify`, on a scripted engine."""

from gptflow.testing import ScriptedEngine, TaskContract, examples, run, run_result
from gptflow_sentiment_monitoring.classify import LABELS, ClassifyPost
from gptflow_sentiment_monitoring.topics import TOPICS, WORDS


class TestContract(TaskContract):
    task = ClassifyPost()


def engine() -> ScriptedEngine:
    return ScriptedEngine(choose=lambda text, labels: labels[0])


def test_both_heads_answer_with_all_probabilities() -> None:
    out = run(ClassifyPost(), "Shares sink", engine=engine())
    assert out.sentiment.label == "negative"
    assert out.topic.label == "Analyst Update"
    assert set(out.sentiment.probs) == set(LABELS)
    assert set(out.topic.probs) == set(TOPICS)


def test_entities_stand_where_they_say() -> None:
    text = "Banks &amp; $NGBK sink, says Microsoft (NASDAQ: MSFT)"
    out = run(ClassifyPost(), {"text": text, "lang": "en"}, engine=engine())
    assert [entity.ticker for entity in out.entities] == ["NGBK", "MSFT", "MSFT"]
    assert all(text[e.start : e.end] == e.text for e in out.entities)


def test_the_post_comes_last_so_that_all_before_it_is_cached() -> None:
    scripted = engine()
    run(ClassifyPost(), "Shares sink", engine=scripted)
    for prompt in scripted.prompts[:2]:
        assert prompt.endswith(("Post: Shares sink\nSentiment:", "Post: Shares sink\nTopic:"))
    assert len({prompt.partition("Shares sink")[0] for prompt in scripted.prompts}) == 2


def test_every_topic_is_shown_once_and_has_a_word_of_its_own() -> None:
    prompt = ClassifyPost().head.heads["topic"].fallback
    ClassifyPost().check()
    words = [
        line.removeprefix("Topic: ")
        for line in prompt.source.splitlines()
        if line.startswith("Topic: ")
    ]
    assert sorted(words) == sorted(WORDS.values())
    assert len(set(words)) == len(TOPICS) == 20


def test_alone_a_post_is_no_duplicate() -> None:
    task = ClassifyPost()
    assert run(task, "Shares sink") == run(task, "Shares sink")
    assert run(task, "Shares sink").duplicate_of is None


def test_chinese_comes_with_a_warning() -> None:
    result = run_result(ClassifyPost(), "贵州茅台(600519.SH)净利润同比增长")
    assert result.warnings[0].startswith("poor_tokenisation")
    assert result.output["lang"] == "zh"
    assert run_result(ClassifyPost(), "Shares sink").warnings == ()


def test_a_post_without_words_abstains() -> None:
    assert run_result(ClassifyPost(), "https://example.com 👍").abstained is not None
    assert run_result(ClassifyPost(), "up 👍").abstained is None


def test_a_long_post_is_shortened_and_says_so() -> None:
    result = run_result(ClassifyPost(), "loss " * 4000)
    assert result.ok
    assert result.provenance is not None
    assert result.provenance.truncated


def test_there_are_thirty_examples_with_the_answer_that_is_right() -> None:
    rows = examples(ClassifyPost())
    assert len(rows) >= 30
    for row in rows:
        assert row["expected"]["sentiment"] in LABELS
        assert row["expected"]["topic"] in TOPICS
    assert {row["expected"]["topic"] for row in rows} == set(TOPICS)
