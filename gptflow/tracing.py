"""Tracing: the caller's place in a distributed trace, to send along with a job.

Whoever has a span open has imported OpenTelemetry already; so nothing is imported for anybody
else, and nothing is needed of those who trace nothing.
"""

from __future__ import annotations

import sys


def trace_context() -> dict[str, str]:
    """The W3C trace context of the active span; empty where there is none."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    try:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:  # another package of that name
        return {}
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier
