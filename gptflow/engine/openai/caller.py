"""A request's way to the server: which model, for whom, how urgent."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from gptflow.engine.openai.capabilities import Capabilities, Server
from gptflow.engine.openai.tokens import Tokens
from gptflow.engine.openai.transport import Transport
from gptflow.errors import EngineError, InputTooLong
from gptflow.request import Request


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """Asks a server on behalf of one request.

    Attributes:
        model: the server's name for the model, or for the adapter on it.
        context: most tokens of one sequence; 0 if nobody knows.
    """

    transport: Transport
    server: Server
    tokens: Tokens
    request: Request
    model: str
    context: int

    @property
    def can(self) -> Capabilities:
        return self.server.capabilities

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one HTTP request.

        Raises:
            GPTFlowError: see `Transport.post`.
        """
        answer = await self.transport.post(path, self._addressed(body), self.request.job_class)
        if not isinstance(answer, dict):
            raise EngineError(f"The model server's answer to {path} is not an object.")
        return answer

    def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The events that answer one HTTP request."""
        asking = self._addressed(body) | {
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return self.transport.stream(path, asking, self.request.job_class)

    def require_room(self, tokens: int, room: int) -> None:
        """Refuse a prompt that leaves less than `room` tokens.

        Raises:
            InputTooLong: with the counts.
        """
        if self.context and tokens + room > self.context:
            raise InputTooLong(
                f"The prompt takes {tokens} tokens and the answer at least {room}; "
                f"the context holds {self.context}.",
                hint="Shorten the input, or let the prompt truncate a variable.",
            )

    def _addressed(self, body: Mapping[str, Any]) -> dict[str, Any]:
        fields: dict[str, Any] = {"model": self.model, **body}
        salt = self.server.dialect.salt
        if salt is not None and self.request.tenant:
            # A server's log must not tell who asks.
            fields[salt] = hashlib.sha256(self.request.tenant.encode()).hexdigest()
        return fields
