"""Recommendation scoring: `recommend.rank` orders candidates for one user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gptflow.hookspecs import hookimpl
from gptflow.task import Task
from gptflow_recommendation_scoring.task import Rank


@hookimpl
def register_tasks(register: Callable[[Task[Any, Any, Any]], None]) -> None:
    register(Rank())
