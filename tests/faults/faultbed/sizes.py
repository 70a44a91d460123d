"""Sizes: how much of each fault, in CI and at night. Bounds in seconds follow from the lease."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """One set of sizes; the fields are named after the rows of the table.

    Attributes:
        lease: of the workers, in seconds. They beat three times as often.
        grace: seconds that a worker has after SIGTERM.
        frozen: seconds for which a worker, or the server, is stopped: more than a lease.
        cut: seconds for which the link is down.
    """

    name: str
    lease: float
    grace: float
    frozen: float
    server_frozen: float
    cut: float
    kills: int
    kill_jobs: int
    kill_every: float
    stock_kills: int
    stock_jobs: int
    pops: int
    server_kills: int
    zombie_jobs: int
    rolling: int
    cancels: int
    producers: int
    keys: int
    beat_kills: int
    beat_kill_every: float
    overload_seconds: float
    streams: int
    maxmemory_mb: int
    real_jobs: int
    leak_items: int

    @property
    def reclaim(self) -> float:
        """Seconds within which a lost job runs again, at the 99th percentile."""
        return self.lease + 2.0


CI = Sizes(
    name="CI",
    lease=3,
    grace=2,
    frozen=5,
    server_frozen=6,
    cut=8,
    kills=30,
    kill_jobs=6000,
    kill_every=1.2,
    stock_kills=6,
    stock_jobs=1200,
    pops=20,
    server_kills=5,
    zombie_jobs=64,
    rolling=10,
    cancels=1000,
    producers=10,
    keys=1000,
    beat_kills=5,
    beat_kill_every=2,
    overload_seconds=9,
    streams=100,
    maxmemory_mb=24,
    real_jobs=24,
    leak_items=6400,
)

NIGHTLY = Sizes(
    name="nightly",
    lease=15,
    grace=30,
    frozen=45,
    server_frozen=30,
    cut=60,
    kills=300,
    kill_jobs=60_000,
    kill_every=2.0,
    stock_kills=100,
    stock_jobs=20_000,
    pops=200,
    server_kills=50,
    zombie_jobs=256,
    rolling=100,
    cancels=1000,
    producers=10,
    keys=10_000,
    beat_kills=15,
    beat_kill_every=20,
    overload_seconds=60,
    streams=500,
    maxmemory_mb=256,
    real_jobs=400,
    leak_items=1_000_000,
)
