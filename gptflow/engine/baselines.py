"""Baselines: the scores of content-free prompts, computed once for all who subtract them."""

from __future__ import annotations

from collections import OrderedDict

from gptflow.engine.pending import BaselineKey, Pending
from gptflow.engine.scheduler import Scheduler
from gptflow.engine.scoring import Scoring
from gptflow.engine.waiting import RANK

_KEPT = 1024
"""A few numbers each."""


class Baselines:
    """Those at hand and those under way; the least recently used go first.

    Args:
        room: tokens that fit in a slot.
    """

    def __init__(self, scheduler: Scheduler, room: int) -> None:
        self._scheduler = scheduler
        self._room = room
        self._scorings: OrderedDict[BaselineKey, Scoring] = OrderedDict()

    def __len__(self) -> int:
        return len(self._scorings)

    def join(self, pending: Pending) -> None:
        """Let a request have the scores that it needs, and wait for them if they are not there.

        They run on account of whoever asks first, in the most urgent class of all that wait.
        """
        key = pending.baseline
        if key is None:
            return
        first = pending.sequences[0]
        scoring = self._scorings.get(key)
        if scoring is None:
            scoring = Scoring(
                key.ids, key.continuations, room=self._room, job_class=first.job_class
            )
            # It may outlive the request that asks first.
            scoring.adapter = first.adapter.again() if first.adapter else None
            scoring.share = first.share
            self._scheduler.add(scoring, begun=True)  # ahead of the one that waits for it
            self._scorings[key] = scoring
            if len(self._scorings) > _KEPT:
                self._scorings.popitem(last=False)
        self._scorings.move_to_end(key)
        pending.scored_baseline = scoring
        if not scoring.ended:
            if RANK[first.job_class] < RANK[scoring.job_class]:
                self._scheduler.reclassify(scoring, first.job_class)
            scoring.owners[pending] = None
            pending.open += 1

    def leave(self, pending: Pending) -> None:
        """A request wants its scores no more. Those under way run on: others will want them."""
        scoring = pending.scored_baseline
        if scoring is None or pending.baseline is None or pending not in scoring.owners:
            return
        del scoring.owners[pending]
        if not scoring.owners and scoring.ticket is not None:
            self._scheduler.remove(scoring)
            if self._scorings.get(pending.baseline) is scoring:  # and no later one
                del self._scorings[pending.baseline]

    def retire(self, lora: str) -> None:
        """Drop what was computed with some LoRA weights."""
        for key in tuple(self._scorings):
            if key.lora == lora:
                del self._scorings[key]

    def forget(self, scoring: Scoring) -> None:
        """Drop scores that went wrong or were not computed."""
        for key, known in tuple(self._scorings.items()):
            if known is scoring:
                del self._scorings[key]
