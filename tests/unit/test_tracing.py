"""The caller's trace travels with its jobs, where there is one."""

from __future__ import annotations

import subprocess
import sys

from opentelemetry.sdk.trace import TracerProvider

from gptflow.tracing import trace_context


def test_the_active_span_is_named_in_w3cs_form() -> None:
    tracer = TracerProvider().get_tracer("caller")
    assert trace_context() == {}
    with tracer.start_as_current_span("call") as span:
        ids = span.get_span_context()
        [(name, value)] = trace_context().items()
        assert name == "traceparent"
        assert value.startswith(f"00-{ids.trace_id:032x}-{ids.span_id:016x}-")
    assert trace_context() == {}


def test_nothing_is_imported_for_those_who_trace_nothing() -> None:
    program = (
        "import sys, gptflow\n"
        "flow = gptflow.Client('memory://')\n"
        "from gptflow.tracing import trace_context\n"
        "assert trace_context() == {}\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'prometheus'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
