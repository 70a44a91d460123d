"""ACL: what callers, workers and operators may do on a Redis server, as Redis says it.

`docs/security.md` and `compose.yaml` hold the same rules; tests keep them so. A script runs with
the rights of whoever calls it, so a caller has each command that the scripts use, on the keys on
which they use it; no more. Redis 7 or any Valkey is needed: older ones know no selectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from gptflow.queue.keys import Keys

Role = Literal["caller", "worker", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)

_CONNECT = "+ping +select +client|setinfo +client|setname +multi +exec +discard +time +info"

# Lists are no part of it: what is in Celery's queues stays out of sight, as do the last words of
# workers.
_READ = (
    "+exists +get +hget +hgetall +hkeys +hmget +mget +smembers +strlen +xread +zcard +zrange "
    "+zrevrange +zscore"
)

# What submitting and cancelling write. A caller can take a job out of the leases by cancelling
# it, and into them by nothing.
_WRITTEN: dict[str, tuple[str, ...]] = {
    "+evalsha": ("job:*", "batch:*", "s:*"),
    "+hset +expire": ("job:*", "batch:*"),
    "+hdel": ("job:*", "depth"),
    "+hincrby": ("batch:*", "depth", "totals"),
    "+hsetnx +sadd": ("batch:*",),
    "+set +expire": ("input:*", "idem:*"),
    "+del": ("input:*", "ready:*"),
    "+xadd +expire": ("s:*", "journal"),
    "+zadd": ("jobs", "waiting:*", "ready:*", "delayed", "outbox"),
    "+zremrangebyrank": ("jobs",),
    "+zrem": ("waiting:*", "ready:*", "delayed", "suspects", "fed", "lease"),
}
_ANNOUNCED = ("wake", "cancels")

_PATTERNS = ("*", "/0.celery.pidbox", "/0.celeryev/*")
"""Channels of workers; Celery's remote control has those of database 0. A pattern to subscribe to
must be listed as it is."""

# Celery's transport uses a good part of these; what tells of other applications is left out.
_WORK = (
    "+@read +@write +@pubsub +@blocking +unwatch +watch +evalsha +script|load +script|exists "
    "-@dangerous -@admin -scan -randomkey -dbsize +info"
)
_LOOK = "+config|get +slowlog|get +slowlog|len +latency|latest +memory|usage +acl|log +client|list"


def rules(role: Role, app: str) -> str:
    """What a user of this role may do, as `ACL SETUSER` and an ACL file take it."""
    prefix = Keys(app).prefix
    if role == "caller":
        channels = " ".join(f"&{prefix}{name}" for name in _ANNOUNCED)
        written = " ".join(
            f"({commands} {' '.join(f'~{prefix}{name}' for name in names)})"
            for commands, names in _WRITTEN.items()
        )
        return (
            f"resetchannels {channels} -@all {_CONNECT} +script|load +publish "
            f"({_READ} %R~{prefix}*) {written}"
        )
    channels = " ".join(f"&{prefix}{name}" for name in _PATTERNS)
    everything = f"resetchannels {channels} ~{prefix}* -@all {_CONNECT} {_WORK}"
    return everything if role == "worker" else f"{everything} {_LOOK}"


def acl_file(app: str, passwords: Mapping[Role, str]) -> str:
    """A server's ACL file: the three users, and nobody else."""
    lines = ["user default off"]
    lines += [f"user {role} on >{passwords[role]} {rules(role, app)}" for role in ROLES]
    return "\n".join(lines) + "\n"
