"""A job's context: what each head asks of the engine, and what the result says of it."""

import asyncio
import hashlib
import re

import pytest

from gptflow.adapter_info import AdapterInfo
from gptflow.context import Job
from gptflow.executor import Executor
from gptflow.heads import Choose, Classify, Generate, Json, MultiHead, Raw, Score, Tag
from gptflow.prompt import CONTENT_FREE, Prompt
from gptflow.task import Input, Output, Task, Text
from gptflow.testing import ScriptedEngine, registry_of


class Post(Input):
    text: Text
    items: tuple[str, ...] = ()


class Said(Output):
    value: str | list[float] | list[str] | dict[str, str] | None = None


class Step(Task[Post, Raw, Said]):
    """Whatever a test wants of the context."""

    name = "test.step"
    first = Prompt("First {{ text }}")
    second = Prompt("Second {{ text }} {{ item }}")
    kind = Prompt("A prompt of its own: {{ text }}")

    def __init__(self, step):
        self.step = step

    async def run(self, input, ctx):
        return Said(value=await self.step(self, dict(input), ctx))


def run(step, text="hello", engine=None, items=(), **job):
    """Run one step; the result, and what the engine was asked."""
    engine = engine or ScriptedEngine()
    job = Job(id="job_1", task="test.step", input={"text": text, "items": items}, **job)
    result = asyncio.run(Executor(engine, registry_of(Step(step))).run(job))
    return result, engine.requests


def texts(requests):
    return [request.prompt.text for request in requests]


# Heads that engines know


def test_generate_sends_its_options_as_a_head():
    async def step(task, values, ctx):
        return (await ctx.generate(task.first, values, max_tokens=7, stop=("\n",))).text

    result, [request] = run(step)
    assert result.output == {"value": "A scripted answer."}
    assert request.head == Generate(max_tokens=7, stop=("\n",))
    assert request.prompt.text == "First hello"


def test_json_sends_its_schema():
    async def step(task, values, ctx):
        return (await ctx.json(task.first, values, schema={"enum": ["a"]}, max_tokens=9)).value

    result, [request] = run(step)
    assert result.output == {"value": "a"}
    assert request.head == Json(schema={"enum": ["a"]}, max_tokens=9)


def test_embed_takes_a_text():
    async def step(task, values, ctx):
        return list((await ctx.embed(values["text"], pooling="last")).vector)

    result, [request] = run(step)
    assert len(result.output["value"]) == 8
    assert request.head.pooling == "last"


def test_a_plain_string_counts_as_the_users_text():
    async def step(task, values, ctx):
        return (await ctx.generate("<|im_start|>system")).text

    _, [request] = run(step)
    assert request.prompt.data == ("<|im_start|>system",)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda ctx, p: ctx.generate(p, {"text": "x"}, max_tokens=0), "Generate: max_tokens is 0"),
        (lambda ctx, p: ctx.generate(p, {"text": "x"}, maxtokens=1), "Generate: .*maxtokens"),
        (lambda ctx, p: ctx.choose(p, {"text": "x"}, labels=["a"]), "Choose: at least two"),
        (lambda ctx, p: ctx.score(p, {"text": "x"}, [], yes=""), "Score: yes and no"),
    ],
)
def test_a_wrong_option_is_the_plugins_error(call, complaint):
    async def step(task, values, ctx):
        await call(ctx, task.first)

    result, requests = run(step)
    assert result.error.code == "GF200"
    assert re.match(complaint, result.error.message)
    assert not requests


# Choosing, and against what


def test_choose_is_held_against_the_same_prompt_without_data():
    async def step(task, values, ctx):
        return (await ctx.choose(task.first, values, labels=["a", "b"])).label

    _, [request] = run(step)
    assert request.head.labels == ("a", "b")
    assert request.baseline.text == f"First {CONTENT_FREE}"


def test_choose_may_blank_some_variables_only():
    async def step(task, values, ctx):
        values["item"] = "kept"
        chosen = await ctx.choose(task.second, values, labels=["a", "b"], blank=("text",))
        return chosen.label

    _, [request] = run(step)
    assert request.baseline.text == f"Second {CONTENT_FREE} kept"


def test_choose_may_do_without_calibration():
    async def step(task, values, ctx):
        return (await ctx.choose(task.first, values, labels=["a", "b"], calibrate=False)).label

    _, [request] = run(step)
    assert request.baseline is None


# Heads that are made of others


def test_classify_is_a_choice_while_nothing_is_trained_and_says_so():
    async def step(task, values, ctx):
        chosen = await ctx.ask(Classify(labels=("good", "bad"), adapter="x"), task.first, values)
        assert chosen.calibrated is False
        return chosen.label

    result, [request] = run(step, engine=ScriptedEngine(choose="bad"))
    assert result.output == {"value": "bad"}
    assert request.head == Choose(labels=("good", "bad"))


def test_classify_may_fall_back_to_a_prompt_of_its_own():
    head = Classify(labels=("good", "bad"), fallback=Step.kind)

    async def step(task, values, ctx):
        return (await ctx.ask(head, task.first, values)).label

    _, requests = run(step)
    assert texts(requests) == ["A prompt of its own: hello"]


@pytest.mark.parametrize(
    ("kind", "head", "trained"),
    [
        ("score", Score(adapter="x"), True),
        ("score", Score(adapter="y"), False),
        ("score", Score(), False),
        ("score", Classify(labels=("good", "bad"), adapter="x"), False),
        ("classify", Classify(labels=("good", "bad"), adapter="x"), True),
        ("tag", Tag(labels=("name", "place"), adapter="x"), True),
        ("tag", Generate(adapter="x"), False),
    ],
)
def test_a_task_may_ask_whether_a_head_is_trained(kind, head, trained):
    class Known(AdapterInfo):
        def answers(self, asked):
            return asked == kind

    class Engine(ScriptedEngine):
        def adapters(self):
            return {"x": Known(alias="x", sha256="0", manifest=None, rank=0, nbytes=0)}

    async def step(task, values, ctx):
        return str(ctx.is_trained(head))

    result, requests = run(step, engine=Engine())
    assert result.output == {"value": str(trained)}
    assert not requests


def test_multihead_answers_for_every_head():
    head = MultiHead(
        heads={"mood": Classify(labels=("good", "bad")), "kind": Classify(labels=("ad", "news"))}
    )

    async def step(task, values, ctx):
        raw = await ctx.ask(head, task.first, values)
        return {name: raw[name].label for name in head.heads}

    script = {("good", "bad"): "bad", ("ad", "news"): "news"}
    engine = ScriptedEngine(choose=lambda text, labels: script[labels])
    assert run(step, engine=engine)[0].output == {"value": {"mood": "bad", "kind": "news"}}


def tag(text, listed, field="text"):
    async def step(task, values, ctx):
        raw = await ctx.ask(Tag(labels=("name", "place"), field=field), task.first, values)
        return [f"{s.label}:{s.start}-{s.end}:{s.text}" for s in raw.spans]

    listed = [{"text": span, "label": label} for span, label in listed]
    result, [request] = run(step, text, engine=ScriptedEngine(json=listed))
    assert isinstance(request.head, Json)
    return result.output["value"]


def test_tagged_spans_are_found_in_the_text_in_its_order():
    spans = tag("Ada met Bob in Rome", [("Rome", "place"), ("Ada", "name"), ("Bob", "name")])
    assert spans == ["name:0-3:Ada", "name:8-11:Bob", "place:15-19:Rome"]


def test_a_span_that_is_listed_twice_is_found_in_two_places():
    assert tag("Bob and Bob", [("Bob", "name"), ("Bob", "name")]) == [
        "name:0-3:Bob",
        "name:8-11:Bob",
    ]


def test_spans_that_do_not_occur_are_dropped():
    listed = [("Eve", "name"), ("", "name"), ("Ada", "name"), ("Ada", "place")]
    assert tag("Only Ada", listed) == ["name:5-8:Ada"]


def test_offsets_are_in_characters_of_the_text():
    assert tag("👩‍👩‍👧 在北京", [("北京", "place")]) == ["place:7-9:北京"]


def test_score_asks_once_per_item_and_keeps_their_order():
    async def step(task, values, ctx):
        raw = await ctx.ask(Score(each="items"), task.second, values)
        return list(raw.values)

    result, requests = run(step, items=("aaa", "b", "cc"), engine=ScriptedEngine(score=len))
    assert texts(requests) == ["Second hello aaa", "Second hello b", "Second hello cc"]
    assert result.output == {"value": [16, 14, 15]}


def test_score_of_no_items_is_no_scores():
    async def step(task, values, ctx):
        return list((await ctx.score(task.second, values, [])).values)

    result, requests = run(step)
    assert (result.output, requests) == ({"value": []}, [])


def test_a_score_may_be_held_against_a_baseline_per_item():
    async def step(task, values, ctx):
        raw = await ctx.score(task.second, values, ["a", "b"], baseline={"text": "-"}, yes="Y")
        return list(raw.values)

    _, requests = run(step)
    assert [request.baseline.text for request in requests] == ["Second - a", "Second - b"]
    assert requests[0].head == Score(yes="Y")


# What the result says


def test_provenance_says_how_to_make_the_answer_again():
    async def step(task, values, ctx):
        return (await ctx.generate(task.first, values)).text

    result, [request] = run(step, seed=7)
    provenance = result.provenance
    assert provenance.model == {"id": "scripted", "sha256": "0" * 64}
    assert provenance.prompt_sha256 == Step.first.sha256
    assert (provenance.seed, request.seed) == (7, 7)
    assert (provenance.tokens_in, provenance.tokens_out) == (3, 1)
    assert provenance.truncated is False


def test_several_prompts_have_one_hash_whatever_their_order():
    def step_in(order):
        async def step(task, values, ctx):
            for name in order:
                await ctx.generate(getattr(task, name), values)

        return step

    one = run(step_in(["first", "kind"]))[0].provenance.prompt_sha256
    two = run(step_in(["kind", "first", "kind"]))[0].provenance.prompt_sha256
    both = "".join(sorted([Step.first.sha256, Step.kind.sha256]))
    assert one == two == hashlib.sha256(both.encode()).hexdigest()


def test_tokens_add_up_over_the_steps():
    async def step(task, values, ctx):
        await ctx.generate("x" * 40)
        await ctx.score(task.second, values, ["a", "b"])

    provenance = run(step)[0].provenance
    assert (provenance.tokens_in, provenance.tokens_out) == (10 + 4 + 4, 3)
    assert provenance.prompt_sha256 == Step.second.sha256


def test_a_failed_job_says_what_it_had_used():
    async def step(task, values, ctx):
        await ctx.generate("x" * 40)
        ctx.warn("half done")
        raise RuntimeError

    result, _ = run(step)
    assert result.provenance.tokens_in == 10
    assert result.warnings == ("half done",)


def test_a_shortened_input_is_said_to_be():
    class Short(Step):
        first = Prompt("{{ text }}", truncate="text")

    async def step(task, values, ctx):
        return (await ctx.generate(Short.first, values, max_tokens=10)).text

    assert run(step, "x" * 9000)[0].provenance.truncated
    assert not run(step, "x")[0].provenance.truncated


def test_a_task_may_abstain_and_warn():
    async def step(task, values, ctx):
        ctx.abstain("cannot tell")
        ctx.warn("one")
        ctx.warn("two")

    result, _ = run(step)
    assert result.ok
    assert result.abstained == "cannot tell"
    assert result.warnings == ("one", "two")


# Seeds


def draw_twice(task, values, ctx):
    async def both():
        await ctx.generate("a")
        await ctx.generate("a")

    return both()


def test_every_draw_of_a_job_has_a_seed_of_its_own():
    seeds = [request.seed for request in run(draw_twice, seed=2**63 - 1)[1]]
    assert seeds == [2**63 - 1, 0]


def test_the_same_job_has_the_same_seeds():
    first, second = ([request.seed for request in run(draw_twice)[1]] for _ in range(2))
    assert first == second
    assert len(set(first)) == 2


# What travels with a request


def test_a_request_says_whose_it_is():
    async def step(task, values, ctx):
        await ctx.generate("x")
        return f"{ctx.job_id} {ctx.tenant}"

    result, [request] = run(step, tenant="acme", job_class="batch", deadline=9e9)
    assert result.output == {"value": "job_1 acme"}
    assert (request.plugin, request.tenant) == ("under_test", "acme")
    assert (request.job_class, request.deadline) == ("batch", 9e9)


def test_only_the_step_that_is_meant_to_is_streamed():
    heard = []

    async def step(task, values, ctx):
        await ctx.generate("secret thoughts")
        await ctx.generate("answer", stream=True)

    run(step, engine=ScriptedEngine(generate=str.upper), on_delta=heard.append)
    assert [delta.text for delta in heard] == ["ANSWER"]
