"""One job is answered by one version of an adapter, whatever is loaded while it runs."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, ClassVar

import pytest

from gptflow.context import Job
from gptflow.errors import AdapterNotFound
from gptflow.executor import Executor
from gptflow.heads import Classify, Generate
from gptflow.prompt import Prompt
from gptflow.request import Request, ServesAdapters
from gptflow.task import Input, Output, Task
from gptflow.testing import registry_of


def ask(ids: tuple[int, ...], adapter: str) -> Request:
    return Request(prompt=ids, head=Generate(max_tokens=4, adapter=adapter), ignore_eos=True)


def test_a_held_version_is_served_after_another_took_its_alias(
    tiny: Any, make_engine: Any, tmp_path: Any
) -> None:
    engine = make_engine()
    assert isinstance(engine, ServesAdapters)
    folders = [tiny.write_lora(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    ids = tiny.prompt_ids(12)
    expected = [tiny.greedy("llama", ids, 4, tiny.merged("llama", folder)) for folder in folders]
    assert expected[0] != expected[1]
    engine.load_adapter("a", folders[0])
    held = engine.hold_adapter("a")
    engine.load_adapter("a", folders[1])
    for name, wanted in (("a", expected[1]), (held.info.reference, expected[0])):
        answer = engine.submit(ask(ids, name)).result(30)
        assert answer.continuations[0].tokens == wanted
    assert answer.adapter == held.info.reference
    engine.unload_adapter("a")
    again = engine.submit(ask(ids, held.info.reference)).result(30)
    assert again.continuations[0].tokens == expected[0]
    reference = held.info.reference
    del held, again, answer
    gc.collect()
    assert isinstance(engine.submit(ask(ids, reference)).exception(30), AdapterNotFound)
    with pytest.raises(AdapterNotFound):
        engine.hold_adapter("a")


class Text(Input):
    text: str


class Found(Output):
    labels: list[str]


class Twice(Task[Text, Any, Found]):
    """Ask the same adapter, wait until somebody promotes another, ask again."""

    name = "demo.twice"
    prompt = Prompt("Text: {{ text }}\nAnswer:")
    head = Classify(labels=("good", "bad"), adapter="mood")
    swap: ClassVar[Any]

    async def run(self, input: Text, ctx: Any) -> Found:
        labels = []
        for _ in range(2):
            raw = await ctx.ask(self.head, self.prompt, dict(input))
            labels.append(f"{raw.adapter} {raw.calibrated}")
            await asyncio.to_thread(type(self).swap)
        return Found(labels=labels)


@pytest.mark.parametrize("then", ["another", "none"])
def test_a_job_of_several_steps_keeps_the_version_it_met(
    tiny: Any, make_engine: Any, tmp_path: Any, then: str
) -> None:
    engine = make_engine()
    first, second = (tiny.write_trained(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    infos = [engine.load_adapter("mood", first)]

    def swap() -> None:
        if then == "none":
            if "mood" in engine.adapters():
                engine.unload_adapter("mood")
        else:
            infos.append(engine.load_adapter("mood", second))

    Twice.swap = staticmethod(swap)
    executor = Executor(engine, registry_of(Twice()))
    job = Job(id="job", task="demo.twice", input={"text": "the dog"})
    result = asyncio.run(executor.run(job))
    assert result.unwrap()["labels"] == [f"{infos[0].reference} True"] * 2
    assert result.provenance is not None
    assert result.provenance.adapter == infos[0].reference
    # A job that comes later is answered by what is loaded now.
    later = asyncio.run(executor.run(job)).unwrap()["labels"]
    assert later == (["None False"] * 2 if then == "none" else [f"{infos[1].reference} True"] * 2)
