"""Interest: how much a user's history speaks for an item, as the model sees it.

Three ways to ask; the first two are read off log-probabilities:

    likelihood   log P(item's text | history), less the same behind a history of nobody in
                 particular; two requests in all, the items are branches of them
    yes_no       log P(Yes) - log P(No) behind a question, less the same without a history;
                 two requests an item
    trained      a head's number for the item behind the history, where there is an adapter that
                 learnt it; one request an item, all of which share the history

What is subtracted by the first two cancels what the model thinks of an item whoever the user is
(Zhao et al. 2021, "Calibrate Before Use"). An item's text is never an instruction: the first way
asks nothing that it could answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from gptflow.concurrency import gather
from gptflow.heads import Score, Scored
from gptflow.prompt import Prompt
from gptflow.task import Context
from gptflow_recommendation_scoring.defaults import ADAPTER, READ_BY_HEAD
from gptflow_recommendation_scoring.schema import Interest
from gptflow_recommendation_scoring.taste import TITLE, Taste, one_line

HEAD = Score(each="items", adapter=ADAPTER)

_ITEM = 200
"""Characters of an item that the model reads."""

_BYTES_PER_TOKEN = 4

_DIGITS = 4
"""Of a margin: what other jobs in the same step can change in it is less, and rounded away."""

_VERBS = {
    "view": "viewed",
    "click": "clicked",
    "like": "liked",
    "comment": "commented on",
    "share": "shared",
    "buy": "bought",
}


async def by_likelihood(
    ctx: Context, history: Prompt, nobody: Prompt, taste: Taste, texts: Sequence[str]
) -> list[Interest]:
    """How much likelier the user's history makes each text than a stranger's would.

    `Choose` gives the mean over a text's tokens. It counts as often as the text has tokens,
    for which its bytes stand, because three words that fit say more than one.
    """
    items = [one_line(text, _ITEM) for text in texts]
    labels = sorted(set(items))
    if len(labels) == 1:
        labels.append(f"{labels[0]}…")  # two labels are the least that can be compared
    lines = "\n- ".join(text for text, _ in taste.texts)
    known, free = await gather(
        ctx.choose(history, {"history": lines}, labels=labels, calibrate=False),
        ctx.choose(nobody, labels=labels, calibrate=False),
    )
    gains = [known.scores[item] - free.scores[item] for item in items]
    tokens = [len(item.encode()) / _BYTES_PER_TOKEN for item in items]
    return [_interest(gain * count) for gain, count in zip(gains, tokens, strict=True)]


async def by_question(
    ctx: Context, prompt: Prompt, taste: Taste, texts: Sequence[str]
) -> list[Interest]:
    """log P(Yes) - log P(No) for each text."""
    profile = [taste.profile] if taste.profile else []
    lines = profile + [f"{_VERBS[entry.event]} {entry.text}" for entry in taste.entries]
    items = [one_line(text, _ITEM) for text in texts]
    scored = await ctx.score(prompt, {"history": "; ".join(lines)}, items, baseline={"history": ""})
    return [_interest(value) for value in scored.values]


async def by_head(
    ctx: Context, prompt: Prompt, titles: Sequence[str], texts: Sequence[str]
) -> list[Interest]:
    """What the trained head makes of each text. Differences are log odds, as in pairs learnt.

    Args:
        titles: the history, what counts most last.
    """
    history = "\n- ".join(one_line(title, TITLE) for title in titles[-READ_BY_HEAD:])
    items = [one_line(text, _ITEM) for text in texts]
    raw = cast(Scored, await ctx.ask(HEAD, prompt, {"history": history, "items": items}))
    return [_interest(value) for value in raw.values]


def _interest(margin: float) -> Interest:
    margin = round(margin, _DIGITS)
    p = 1 / (1 + math.exp(-margin)) if margin > -700 else 0.0
    return Interest(margin=margin, p=round(p, _DIGITS))
