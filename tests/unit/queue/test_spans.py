"""What OpenTelemetry is told of jobs."""

from __future__ import annotations

import asyncio
import builtins
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gptflow import config
from gptflow.client import Client
from gptflow.errors import MissingDependency
from gptflow.heads import Generate
from gptflow.plugins import Registry
from gptflow.prompt import Prompt
from gptflow.queue import memory
from gptflow.queue.runtime import Runtime
from gptflow.queue.spans import Spans
from gptflow.task import Context, Input, Output, Task
from gptflow.testing import ScriptedEngine, registry_of


class Words(Input):
    text: str


class Said(Output):
    text: str


class Say(Task[Words, Any, Said]):
    """Answer."""

    name = "say.it"
    prompt = Prompt("{{ text }}")
    head = Generate()

    def postprocess(self, input: Words, raw: Any) -> Said:
        return Said(text=raw.text)


class Break(Task[Words, Any, Said]):
    """Raise."""

    name = "say.nothing"

    async def run(self, input: Words, ctx: Context) -> Said:
        with trace.get_tracer("plugin").start_as_current_span("of the plugin"):
            raise ValueError(f"cannot say {input.text}")


class Wait(Task[Words, Any, Said]):
    """Never end."""

    name = "say.later"
    begun = threading.Event()

    async def run(self, input: Words, ctx: Context) -> Said:
        self.begun.set()
        await asyncio.Event().wait()
        raise AssertionError


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)  # can be done once only in a process
    return exporter


@pytest.fixture
def flow(exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    exporter.clear()
    registry = registry_of(Say(), Break(), Wait())

    def traced(engine: Any, registry: Registry, transport: Any, **more: Any) -> Runtime:
        return Runtime(engine, registry, transport, **more, spans=Spans(registry))

    monkeypatch.setattr(memory, "Runtime", traced)
    with Client("memory://", engine=ScriptedEngine(), registry=registry) as client:
        yield client


def find(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    [span] = [span for span in exporter.get_finished_spans() if span.name == name]
    return span


def test_a_jobs_span_is_below_its_callers_and_says_what_it_took(
    flow: Client, exporter: InMemorySpanExporter
) -> None:
    with trace.get_tracer("caller").start_as_current_span("call") as caller:
        job = flow.submit("say.it", {"text": "my secret"})
    assert job.wait(10).ok
    span = find(exporter, "run say.it")
    context = caller.get_span_context()
    assert span.parent is not None
    assert (span.parent.trace_id, span.parent.span_id) == (context.trace_id, context.span_id)
    assert span.parent.is_remote
    assert span.kind is trace.SpanKind.CONSUMER
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "gptflow",
        "gen_ai.request.model": "scripted",
        "gen_ai.response.model": "scripted",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 1,
        "gptflow.task": "say.it",
        "gptflow.class": "standard",
        "gptflow.job": job.id,
        "gptflow.state": "done",
    }


def test_a_failure_is_told_without_its_words(flow: Client, exporter: InMemorySpanExporter) -> None:
    assert not flow.submit("say.nothing", {"text": "my secret"}).wait(10).ok
    span, inner = find(exporter, "run say.nothing"), find(exporter, "of the plugin")
    assert inner.parent is not None
    assert inner.parent.span_id == span.get_span_context().span_id
    assert span.status.status_code is trace.StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "GF502"
    assert "secret" not in span.to_json()


def test_a_message_of_a_batch_has_one_span(flow: Client, exporter: InMemorySpanExporter) -> None:
    with trace.get_tracer("caller").start_as_current_span("call") as caller:
        batch = flow.submit_many("say.it", [{"text": "a"}] * 70)
    assert len(list(batch.results(10))) == 70
    flow.close()  # a message's span ends after its rows are recorded
    found = [span for span in exporter.get_finished_spans() if span.name == "run say.it"]
    assert sorted((span.attributes or {})["gptflow.items"] for span in found) == [6, 64]
    ids = {span.get_span_context().trace_id for span in found}
    assert ids == {caller.get_span_context().trace_id}


def test_a_cancelled_job_ends_its_span(flow: Client, exporter: InMemorySpanExporter) -> None:
    job = flow.submit("say.later", {"text": "a"})
    assert Wait.begun.wait(10)
    assert job.cancel()
    flow.close()
    span = find(exporter, "run say.later")
    assert span.status.status_code is trace.StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "CancelledError"


def test_a_trace_context_that_is_none_starts_a_new_trace(
    flow: Client, exporter: InMemorySpanExporter
) -> None:
    from gptflow.envelope import Envelope

    envelope = Envelope(task="say.it", input={"text": "a"}, trace={"traceparent": "junk", "x": "y"})
    flow.transport.submit(envelope)
    assert flow.job(envelope.id).wait(10).ok
    assert find(exporter, "run say.it").parent is None


def test_without_the_package_the_setting_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any, **named: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert Spans.of(config.Settings(), Registry()) is None
    with pytest.raises(MissingDependency) as error:
        Spans.of(config.Settings(otel=True), Registry())
    assert "gptflow[otel]" in str(error.value.hint)
