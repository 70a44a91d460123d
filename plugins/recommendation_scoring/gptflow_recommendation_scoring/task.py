"""The task `recommend.rank`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from gptflow.heads import Scored
from gptflow.prompt import Prompt
from gptflow.task import Context, Task
from gptflow_recommendation_scoring import diversity, interest, ranking
from gptflow_recommendation_scoring.explanation import explain
from gptflow_recommendation_scoring.schema import (
    Dropped,
    Interest,
    RankedItem,
    RankInput,
    RankOutput,
    Strategy,
)
from gptflow_recommendation_scoring.taste import Taste, utc_now


class Rank(Task[RankInput, Scored, RankOutput]):
    """Rank candidates for a user by interest, features and diversity."""

    name = "recommend.rank"
    history = Prompt.file("history.j2", truncate="history", keep="end")
    nobody = Prompt.file("nobody.j2")
    yes_no = Prompt.file("yes_no.j2", truncate="history", keep="end")
    next = Prompt.file("next.j2", truncate="history", keep="end")

    async def run(self, input: RankInput, ctx: Context) -> RankOutput:
        now = input.now or utc_now()
        taste = Taste.of(input, now)
        candidates, dropped = ranking.admit(input)
        if not candidates:
            ctx.abstain("Every candidate was dropped.")
            return RankOutput(
                items=[], dropped=dropped, strategy="without_model", model_read=0, weights={}
            )
        slate = await asyncio.to_thread(ranking.Slate, input, candidates, taste, now)
        _warn(slate, ctx)
        to_read = await asyncio.to_thread(slate.for_model, input.max_model_candidates)
        texts = [candidates[i].text for i in to_read]
        judged = dict(zip(to_read, await self._judge(input, ctx, taste, texts), strict=True))
        return await asyncio.to_thread(_rank, input, slate, taste, judged, dropped)

    async def _judge(
        self, input: RankInput, ctx: Context, taste: Taste, texts: Sequence[str]
    ) -> list[Interest]:
        if not texts:
            return []
        if input.judge == "yes_no":
            return await interest.by_question(ctx, self.yes_no, taste, texts)
        if input.judge == "trained":
            if ctx.is_trained(interest.HEAD):
                titles = [text for text, _ in taste.texts]
                return await interest.by_head(ctx, self.next, titles, texts)
            alias = interest.HEAD.adapter
            ctx.warn(f"No adapter {alias!r} is better than a simple model; `likelihood` judged.")
        return await interest.by_likelihood(ctx, self.history, self.nobody, taste, texts)


def _warn(slate: ranking.Slate, ctx: Context) -> None:
    if slate.unweighted:
        names = ", ".join(map(repr, slate.unweighted))
        ctx.warn(f"Features without a weight are not used: {names}.")
    if slate.unknown:
        names = ", ".join(map(repr, slate.unknown))
        ctx.warn(f"No candidate has these features, which were given a weight: {names}.")
    if not slate.weights:
        ctx.abstain("Nothing tells the candidates apart, so their order is arbitrary.")


def _rank(
    input: RankInput,
    slate: ranking.Slate,
    taste: Taste,
    judged: Mapping[int, Interest],
    dropped: Sequence[Dropped],
) -> RankOutput:
    margins = {i: each.margin for i, each in judged.items() if each.margin is not None}
    standings = slate.standings(margins)
    chosen, capped = diversity.pick(
        standings,
        slate.best_first(standings),
        slate.space,
        k=input.k,
        diversity=input.diversity,
        category_cap=input.category_cap,
    )
    nearest = slate.nearest(taste)
    items = [
        RankedItem(
            item_id=standing.candidate.item_id,
            rank=rank,
            score=standing.score,
            p=None if slate.blend is None else round(slate.blend.probability(standing.score), 4),
            interest=judged.get(i, Interest()),
            contributions=dict(standing.contributions),
            missing=list(standing.missing),
            cold=standing.cold,
            explanation=explain(standing, nearest.get(i)),
        )
        for rank, (i, standing) in enumerate(((i, standings[i]) for i in chosen), start=1)
    ]
    kept_out = [
        Dropped(item_id=standings[i].candidate.item_id, reason="category_cap") for i in capped
    ]
    return RankOutput(
        items=items,
        dropped=[*dropped, *kept_out],
        strategy=_strategy(slate, taste, standings, judged),
        model_read=len(judged),
        weights=slate.weights,
    )


def _strategy(
    slate: ranking.Slate,
    taste: Taste,
    standings: Sequence[ranking.Standing],
    judged: Mapping[int, Interest],
) -> Strategy:
    if not taste:
        return "cold_user"
    if not judged:
        return "without_model"
    readable = sum(bool(standing.candidate.text.strip()) for standing in standings)
    return "interest" if len(judged) == readable else "preselected"
