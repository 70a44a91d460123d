"""3. Heads: how the model answers. A task names one; each has its own raw answer."""

import pytest
from pydantic import Field

from gptflow import (
    Choose,
    Classify,
    Embed,
    Generate,
    Input,
    Json,
    MultiHead,
    Output,
    Prompt,
    Score,
    Tag,
    Task,
    Text,
)
from gptflow.heads import Raw
from gptflow.testing import ScriptedEngine, run


class Note(Input):
    text: Text
    items: tuple[str, ...] = ()


class Answer(Output):
    value: object


def answer(how, note, read, template="Note: {{ text }}", **script):
    """What a task with this head makes of a note; `read` is its post-processing."""

    class Do(Task[Note, Raw, Answer]):
        """Answer somehow."""

        name = "notes.do"
        prompt = Prompt(template)
        head = how

        def postprocess(self, input, raw):
            return Answer(value=read(raw))

    return run(Do(), note, **script).value


def test_generate_continues_the_prompt():
    head = Generate(max_tokens=20, temperature=0.7, stop=("\n",))
    assert answer(head, "Hello", lambda raw: raw.text, generate=" there!") == " there!"


def test_generate_may_draw_several_continuations():
    texts = answer(
        Generate(n=3), "Hi", lambda raw: [c.text for c in raw.continuations], generate="Yo"
    )
    assert texts == ["Yo", "Yo", "Yo"]


def test_json_fits_a_schema_while_it_is_decoded():
    """Unscripted, the engine answers with the least value that fits."""

    class Order(Output):
        item: str
        quantity: int = Field(ge=1)

    head = Json(schema=Order)
    assert answer(head, "A lamp.", lambda raw: raw.value) == {"item": "", "quantity": 1}


def test_choose_finds_the_likeliest_label_without_any_training():
    head = Choose(labels=("question", "complaint"))
    assert answer(head, "Why?", lambda raw: raw.label, choose="question") == "question"


def test_choose_gives_every_label_a_probability():
    probs = answer(Choose(labels=("a", "b", "c")), "x", lambda raw: dict(raw.probs))
    assert sum(probs.values()) == pytest.approx(1)


def test_classify_is_a_trained_head_and_a_choice_until_it_is_trained():
    head = Classify(labels=("good", "bad"))
    read = answer(head, "Fine.", lambda raw: [raw.label, raw.calibrated], choose="good")
    assert read == ["good", False]


def test_several_classifications_share_one_prompt():
    head = MultiHead(
        heads={
            "mood": Classify(labels=("good", "bad")),
            "urgent": Classify(labels=("yes", "no")),
        }
    )
    read = answer(
        head,
        "Help!",
        lambda raw: {name: raw[name].label for name in head.heads},
        choose=lambda prompt, labels: labels[0],
    )
    assert read == {"mood": "good", "urgent": "yes"}


def test_tag_finds_labelled_spans_in_the_text():
    spans = answer(
        Tag(labels=("person", "place")),
        "Ada went to Rome.",
        lambda raw: [f"{span.label} {span.text} {span.start}-{span.end}" for span in raw.spans],
        json=[{"text": "Rome", "label": "place"}, {"text": "Ada", "label": "person"}],
    )
    assert spans == ["person Ada 0-3", "place Rome 12-16"]


def test_score_gives_every_item_of_a_list_a_number():
    """The template sees each one as `item`; its score is log P(Yes) - log P(No)."""
    engine = ScriptedEngine(score=lambda prompt: 1.0 if prompt.endswith("hat") else -1.0)
    values = answer(
        Score(each="items"),
        {"text": "Cold?", "items": ["hat", "pond"]},
        lambda raw: list(raw.values),
        template="{{ text }} A {{ item }}",
        engine=engine,
    )
    assert values == [1.0, -1.0]
    assert engine.prompts == ["Cold? A hat", "Cold? A pond"]


def test_embed_turns_text_into_a_vector():
    vector = answer(Embed(), "Hello", lambda raw: list(raw.vector))
    assert sum(x * x for x in vector) == pytest.approx(1)


def test_a_head_that_makes_no_sense_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match="at least two labels"):
        Choose(labels=("only",))
