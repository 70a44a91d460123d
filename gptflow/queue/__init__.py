"""The Celery side: how jobs get from a caller to the engine and their results back.

    caller ─▶ Transport ─▶ Store ══ Redis ══▶ Celery worker ─▶ EnginePool ─▶ Runtime ─▶ Executor
                 ▲           │                                                 │
                 └─ results ─┴──────────────── claim, finish ◀─────────────────┘

The store's records are the truth about a job; the Celery message only says that there is one.
`memory://` has the same parts without Redis and Celery.
"""
