"""Spans: what a worker tells OpenTelemetry of the jobs it runs.

One span a job, and one for a message of a batch, below the caller's span where the envelope
names one; what plugins open while the job runs is below it. The attributes are those of the
semantic conventions for generative AI, as of version 0.66b2 of their Python package, and none
of them holds text of a prompt or an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from gptflow import __version__
from gptflow.config import Settings
from gptflow.envelope import Envelope
from gptflow.errors import MissingDependency
from gptflow.heads import Embed, Generate
from gptflow.plugins import Registry
from gptflow.result import Result

T = TypeVar("T")
Run = Callable[[], Coroutine[Any, Any, T]]

_OPERATIONS: dict[type, str] = {Embed: "embeddings", Generate: "text_completion"}
_SERVICE = "gptflow-worker"


class Spans:
    """Opens a span around whatever runs a job.

    Raises:
        MissingDependency: OpenTelemetry is not installed.
    """

    def __init__(self, registry: Registry) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.trace.propagation import tracecontext
        except ImportError:
            raise _missing() from None
        self._trace = trace
        self._tracer = trace.get_tracer("gptflow", __version__)
        self._propagator = tracecontext.TraceContextTextMapPropagator()
        self._registry = registry

    @classmethod
    def of(cls, settings: Settings, registry: Registry) -> Spans | None:
        """Those that the settings ask for, sent as the `OTEL_*` variables say.

        Raises:
            MissingDependency: OpenTelemetry or its exporter is not installed.
        """
        if not settings.otel:
            return None
        _provide()
        return cls(registry)

    async def around(self, envelope: Envelope, model: str, run: Run[T]) -> T:
        """Run a job or the rows of a message inside a span.

        Args:
            model: the resident one's name.
        """
        trace = self._trace
        with self._tracer.start_as_current_span(
            f"run {envelope.task}",
            context=self._propagator.extract(envelope.trace),
            kind=trace.SpanKind.CONSUMER,
            attributes=self._attributes(envelope, model),
            # An exception's words may quote the input.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                ended = await run()
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(trace.StatusCode.ERROR)
                raise
            if isinstance(ended, Result):
                self._end(span, ended)
            return ended

    def _attributes(self, envelope: Envelope, model: str) -> dict[str, str | int]:
        task = self._registry.tasks.get(envelope.task)
        head = type(task.head) if task is not None and task.head is not None else None
        operation = "run" if head is None else _OPERATIONS.get(head, head.__name__.lower())
        items = {} if envelope.items is None else {"gptflow.items": len(envelope.items)}
        return {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "gptflow",
            "gen_ai.request.model": model,
            "gptflow.task": envelope.task,
            "gptflow.class": envelope.job_class,
            "gptflow.job": envelope.id,
            **items,
        }

    def _end(self, span: Any, result: Result) -> None:
        span.set_attribute("gptflow.state", result.state)
        if (made := result.provenance) is not None:
            span.set_attribute("gen_ai.response.model", made.model["id"])
            span.set_attribute("gen_ai.usage.input_tokens", made.tokens_in)
            span.set_attribute("gen_ai.usage.output_tokens", made.tokens_out)
            if made.adapter is not None:
                span.set_attribute("gptflow.adapter", made.adapter)
        if result.error is not None:
            span.set_attribute("error.type", result.error.code)
            span.set_status(self._trace.StatusCode.ERROR)


def _provide() -> None:
    """Send spans somewhere, unless this process has been told where already."""
    try:
        from opentelemetry import trace

        if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            return
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise _missing() from None
    resource = Resource.create()  # of OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": _SERVICE}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def _missing() -> MissingDependency:
    return MissingDependency(
        "The setting otel needs OpenTelemetry and its exporter.",
        hint="pip install 'gptflow[otel]', or set otel = false.",
    )
