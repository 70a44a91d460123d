"""What the documents say about the code is true of the code."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

from gptflow import hookspecs
from gptflow.envelope import Envelope
from gptflow.hookspecs import hookspec
from gptflow.queue.acl import ROLES, rules
from gptflow.queue.scripts import source

DOCS = Path(__file__).parents[2] / "docs"


def test_the_envelopes_schema_is_the_one_in_the_docs() -> None:
    written = json.loads((DOCS / "envelope.schema.json").read_text(encoding="utf-8"))
    assert written == Envelope.model_json_schema(by_alias=True)


def test_the_example_envelope_is_valid() -> None:
    [example] = re.findall(r"```json\n(.*?)```", (DOCS / "queue.md").read_text("utf-8"), re.DOTALL)
    assert Envelope.from_wire(json.loads(example)).task == "text.chat"


def test_the_published_script_is_the_one_that_is_called() -> None:
    written = (DOCS.parent / "examples" / "enqueue.lua").read_text(encoding="utf-8")
    assert written == source("enqueue"), "write source('enqueue') of gptflow.queue.scripts to it"


def test_the_rights_of_users_are_those_in_the_docs() -> None:
    text = (DOCS / "security.md").read_text(encoding="utf-8")
    for role in ROLES:
        assert f"{role}: {rules(role, 'gptflow')}\n" in text


def test_every_hook_is_documented_with_its_arguments() -> None:
    text = (DOCS / "plugins.md").read_text(encoding="utf-8")
    marker = f"{hookspec.project_name}_spec"
    hooks = {name: value for name, value in vars(hookspecs).items() if hasattr(value, marker)}
    assert 0 < len(hooks) <= 10
    for name, function in hooks.items():
        arguments = ", ".join(inspect.signature(function).parameters)
        assert f"`{name}({arguments})`" in text, name
