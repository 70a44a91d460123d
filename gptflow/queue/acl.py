"""ACL: what callers, workers and operators may do on a Redis server, as Redis says it.

`docs/security.md` and `compose.yaml` hold the same rules; tests keep them so. A script runs with
the rights of whoever calls it, so a caller has the commands that the scripts use, on the keys on
which they use them; no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from gptflow.queue.keys import Keys

Role = Literal["caller", "worker", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)

_CONNECT = "+ping +select +client|setinfo +client|setname +multi +exec +discard +time +info"
_SCRIPTS = "+evalsha +script|load"

# A caller's scripts read a job's way through the queue, and lists are no part of that: what is
# in Celery's queues stays out of sight, as do the last words of workers.
_READ = "+exists +get +hget +hkeys +hmget +mget +smembers +strlen +xread +zrange +zrevrange +zscore"
_WRITE = (
    f"{_SCRIPTS} +expire +hdel +hincrby +hset +hsetnx +sadd +set +xadd +zadd +zrem +zremrangebyrank"
)
_WRITTEN = [
    "job:*",
    "input:*",
    "s:*",
    "batch:*",
    "idem:*",
    "jobs",
    "waiting:*",
    "ready:*",
    "delayed",
    "suspects",
    "fed",
    "lease",
    "depth",
    "totals",
    "journal",
    "outbox",
    "refused",
]
_DELETED = ["input:*", "ready:*"]
_CHANNELS = ["wake", "cancels"]
_PATTERNS = ["/0.celery.pidbox", "/0.celeryev/*"]  # of Celery's remote control, in database 0

# Celery's transport uses a good part of these; what tells of other applications is left out.
_WORK = (
    f"+@read +@write +@pubsub +@blocking +unwatch +watch {_SCRIPTS} +script|exists "
    "-@dangerous -@admin -scan -randomkey -dbsize +info"
)
_LOOK = "+config|get +slowlog|get +slowlog|len +latency|latest +memory|usage +acl|log +client|list"


def rules(role: Role, app: str) -> str:
    """What a user of this role may do, as `ACL SETUSER` and an ACL file take it."""
    prefix = Keys(app).prefix
    if role == "caller":
        written = " ".join(f"~{prefix}{name}" for name in _WRITTEN)
        deleted = " ".join(f"~{prefix}{name}" for name in _DELETED)
        channels = " ".join(f"&{prefix}{name}" for name in _CHANNELS)
        return (
            f"resetchannels {channels} -@all {_CONNECT} {_SCRIPTS} +publish "
            f"({_READ} %R~{prefix}*) ({_WRITE} {written}) (+del {deleted})"
        )
    # A pattern to subscribe to must be listed as it is.
    channels = " ".join(f"&{prefix}{name}" for name in ("*", *_PATTERNS))
    everything = f"resetchannels {channels} ~{prefix}* -@all {_CONNECT} {_WORK}"
    return everything if role == "worker" else f"{everything} {_LOOK}"


def acl_file(app: str, passwords: Mapping[Role, str]) -> str:
    """A server's ACL file: the three users, and nobody else."""
    lines = ["user default off"]
    lines += [f"user {role} on >{passwords[role]} {rules(role, app)}" for role in ROLES]
    return "\n".join(lines) + "\n"
