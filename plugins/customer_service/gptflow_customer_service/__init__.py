"""GPTFlow plugin: customer service with a knowledge base, checked answers and hand-off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gptflow.hookspecs import hookimpl
from gptflow.task import Task


@hookimpl
def register_tasks(register: Callable[[Task[Any, Any, Any]], None]) -> None:
    from gptflow_customer_service.answer_matching import MatchAnswer
    from gptflow_customer_service.classification import ClassifyIntent
    from gptflow_customer_service.reply import CustomerReply

    register(CustomerReply())
    register(ClassifyIntent())
    register(MatchAnswer())
