"""`sentiment.entities` and `sentiment.filing_entities`: names in posts, and in filings."""

from __future__ import annotations

from pydantic import Field

from gptflow import Input, Output, Prompt, Tag, Tagged, Task, Text

# A causal model has read a whole text only in its second copy, so it is that one that is tagged.
ECHO = Prompt("{{ text }}\n{{ text }}", truncate="text")


class Document(Input):
    text: Text = Field(max_length=20_000)


class Entity(Output):
    """A name: characters `start:end` of the text, control characters removed."""

    text: str
    type: str
    start: int
    end: int
    score: float


class Entities(Output):
    entities: list[Entity]


class _FindEntities(Task[Document, Tagged, Entities]):
    prompt = ECHO

    def postprocess(self, input: Document, raw: Tagged) -> Entities:
        return Entities(
            entities=[
                Entity(text=s.text, type=s.label, start=s.start, end=s.end, score=s.score)
                for s in raw.spans
            ]
        )


class FindPostEntities(_FindEntities):
    """Persons, places, companies, groups, products and works that a post names."""

    name = "sentiment.entities"
    examples = "entity_examples.jsonl"
    # The types of WNUT17 (Derczynski et al. 2017): rare names in noisy text.
    head = Tag(
        labels=("person", "location", "corporation", "group", "product", "creative-work"),
        adapter="post_entities",
    )


class FindFilingEntities(_FindEntities):
    """Persons, organisations and places that a filing or a contract names."""

    name = "sentiment.filing_entities"
    examples = "filing_examples.jsonl"
    # Those of loan agreements filed with the SEC (Salinas Alvarado et al. 2015).
    head = Tag(labels=("PER", "ORG", "LOC", "MISC"), adapter="filing_entities")
