"""Recommendation scoring: candidates in order for one user, and what a history says of titles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gptflow.hookspecs import hookimpl
from gptflow.task import Task
from gptflow_recommendation_scoring.learned_interest import ScoreInterest
from gptflow_recommendation_scoring.task import Rank


@hookimpl
def register_tasks(register: Callable[[Task[Any, Any, Any]], None]) -> None:
    register(Rank())
    register(ScoreInterest())
