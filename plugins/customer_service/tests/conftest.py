from __future__ import annotations

from pathlib import Path

import pytest

from gptflow_customer_service.knowledge import Knowledge
from gptflow_customer_service.matching import Matcher
from gptflow_customer_service.reply import CustomerReply


@pytest.fixture(scope="session")
def knowledge() -> Knowledge:
    return Knowledge.load(CustomerReply().directory / "knowledge.jsonl")


@pytest.fixture(scope="session")
def matcher(knowledge: Knowledge) -> Matcher:
    return Matcher(knowledge)


@pytest.fixture(scope="session")
def questions() -> Path:
    return Path(__file__).with_name("questions.jsonl")
