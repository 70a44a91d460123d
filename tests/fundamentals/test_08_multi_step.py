"""8. Several steps: a task may ask the model more than once, and other tasks too."""

import asyncio
from pathlib import Path

import pytest

from gptflow import Context, Generated, Input, Output, Prompt, Task, Text
from gptflow.testing import ScriptedEngine, registry_of, run, run_result


class Message(Input):
    text: Text


class Reply(Output):
    text: str = ""


class Triage(Task[Message, Generated, Reply]):
    """Answer questions, and leave the rest alone."""

    name = "desk.triage"
    kind = Prompt("Message: {{ text }}\nThis is a")
    answer = Prompt("user:\n{{ text }}\nassistant:\n")

    async def run(self, input: Message, ctx: Context) -> Reply:
        kind = await ctx.choose(self.kind, dict(input), labels=("question", "statement"))
        if kind.label == "statement":
            ctx.abstain("not a question")
            return Reply()
        raw = await ctx.generate(self.answer, dict(input), max_tokens=40)
        return Reply(text=raw.text)


def test_each_step_awaits_the_model():
    """Every `await` joins the batch of all other jobs that run."""
    engine = ScriptedEngine(choose="question", generate="Because.")
    assert run(Triage(), "Why?", engine=engine) == Reply(text="Because.")
    assert len(engine.requests) == 2


def test_a_task_may_stop_early_and_say_why():
    engine = ScriptedEngine(choose="statement")
    result = run_result(Triage(), "It rains.", engine=engine)
    assert result.ok
    assert result.abstained == "not a question"
    assert len(engine.requests) == 1


def test_the_provenance_adds_up_over_all_steps():
    provenance = run_result(Triage(), "Why?", engine=ScriptedEngine(choose="question")).provenance
    assert provenance.tokens_out == 2


class BestOf(Task[Message, Generated, Reply]):
    """Write two drafts and keep the one that scores better."""

    name = "desk.best"
    draft = Prompt("user:\n{{ text }}\nassistant:\n")
    judge = Prompt("Question: {{ text }}\nDraft: {{ item }}\nGood? Answer:")

    async def run(self, input: Message, ctx: Context) -> Reply:
        values = dict(input)
        drafts = await asyncio.gather(
            ctx.generate(self.draft, values, temperature=1.0),
            ctx.generate(self.draft, values, temperature=1.0, max_tokens=20),
        )
        texts = [draft.text for draft in drafts]
        scores = (await ctx.score(self.judge, values, texts)).values
        if len(set(texts)) < len(texts):
            ctx.warn("both drafts are the same")
        return Reply(text=max(zip(scores, texts, strict=True))[1])


def test_steps_may_run_side_by_side():
    drafts = iter(["Short.", "Long and good."])
    engine = ScriptedEngine(generate=lambda _: next(drafts), score=len)
    assert run(BestOf(), "Why?", engine=engine).text == "Long and good."


def test_every_step_draws_with_a_seed_of_its_own():
    engine = ScriptedEngine()
    run(BestOf(), "Why?", engine=engine)
    assert len({request.seed for request in engine.requests}) == len(engine.requests)


def test_a_task_may_warn():
    assert run_result(BestOf(), "Why?").warnings == ("both drafts are the same",)


class Digest(Task[Message, Generated, Reply]):
    """Triage every line of a message."""

    name = "desk.digest"

    async def run(self, input: Message, ctx: Context) -> Reply:
        results = await ctx.map("desk.triage", input.text.splitlines())
        return Reply(text=" ".join(result.unwrap()["text"] for result in results))


class TestMap:
    @pytest.fixture
    def flow_registry(self):
        return registry_of(Triage(), Digest())

    @pytest.fixture
    def scripted_engine(self):
        return ScriptedEngine(choose="question", generate="Yes.")

    def test_a_task_may_run_another_over_many_inputs(self, flow):
        assert flow.run("desk.digest", "Is it?\nWill it?", timeout=10) == {"text": "Yes. Yes."}


def test_setup_loads_what_a_task_needs_once_per_worker():
    class Informed(Triage):
        opened = 0

        def setup(self, ctx):
            self.source = Path(ctx.directory, Path(__file__).name).read_text(encoding="utf-8")
            type(self).opened += 1

        async def run(self, input, ctx):
            return Reply(text=self.source.splitlines()[0])

    assert run(Informed(), "x").text.startswith('"""8. Several steps')
    assert Informed.opened == 1
