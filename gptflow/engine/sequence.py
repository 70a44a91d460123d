"""Sequences: token rows that fill one slot, and what is read off them as they are computed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING

import torch

from gptflow.heads import Continuation, FinishReason
from gptflow.heads import Pooling as PoolingKind
from gptflow.request import JobClass

if TYPE_CHECKING:
    from gptflow.engine.adapter_pool import Lease
    from gptflow.engine.constraints import Constraint
    from gptflow.engine.detokenizer import Detokenizer
    from gptflow.engine.lora_weights import LoRAWeights
    from gptflow.engine.pending import Pending
    from gptflow.engine.prefix import Prefix

Share = tuple[str, str]
"""Tenant and plugin: who shares the engine fairly with whom."""


class Sequence:
    """Tokens to run through the model in order, a chunk at a time.

    Attributes:
        tokens: all rows known so far.
        branches: per row, the first later row that does not see it, as it stands on a branch
            that has ended there; None when every row sees all before it.
        trunk: rows before the first branch.
        prefix: the leading tokens that other requests are likely to share.
        shared: keys and values of leading tokens to start from, if somebody left them.
        done: rows whose keys and values are in the slot.
        cached: rows among them that were copied, not computed.
        adapter: whose weights its rows are computed with; None for the base model.
        lora: its LoRA weights, while the sequence has a slot.
        owners: the requests that wait for this sequence.
        share: for whom it runs.
        deadline: Unix time after which it is of no use.
        ticket: its place among those that wait; None while it does not.
        charged: rows that its share has been charged for, but for those that were spared.
        spared: leading rows that it was not charged for, as they are copied.
        preempted: how often it lost its slot to a more urgent one.
    """

    decodes = False
    """It needs a slot for as long as it draws tokens, and not for its prompt alone."""

    def __init__(
        self, tokens: Rows[int], *, prefix: Prefix | None = None, job_class: JobClass = "standard"
    ) -> None:
        self.tokens = list(tokens)
        self.trunk = len(self.tokens)
        self.branches: list[int] | None = None
        self.prefix = prefix
        self.job_class = job_class
        self.shared: torch.Tensor | None = None
        self.slot: int | None = None
        self.done = 0
        self.cached = 0
        self.adapter: Lease | None = None
        self.lora: LoRAWeights | None = None
        self.owners: dict[Pending, None] = {}  # in the order of their coming
        self.share: Share = ("", "")
        self.deadline = math.inf
        self.ticket: int | None = None
        self.charged = 0
        self.spared = 0
        self.preempted = 0

    @property
    def most_tokens(self) -> int:
        """The most rows that it can come to hold in its slot."""
        return len(self.tokens)

    def restart(self) -> None:
        """Go back to where nothing is in a slot, without giving up what was drawn."""
        self.done = 0

    @property
    def remaining(self) -> int:
        return len(self.tokens) - self.done

    def positions(self, start: int, stop: int) -> Rows[int]:
        """The model's position of rows `start:stop`."""
        return range(start, stop)

    @property
    def ended(self) -> bool:
        """Nothing is left to compute."""
        return self.remaining == 0


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """Rows `start:stop` of a sequence, to be computed in this step."""

    sequence: Sequence
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def slot(self) -> int:
        """Where the sequence's keys and values are."""
        assert self.sequence.slot is not None, "only sequences with a slot are run"
        return self.sequence.slot

    @property
    def branches_off(self) -> bool:
        """Some rows do not see all before them."""
        return self.sequence.branches is not None and self.stop > self.sequence.trunk

    @property
    def is_decode(self) -> bool:
        """One row, of a sequence that decodes."""
        return len(self) == 1 and self.sequence.decodes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to draw the next token; see `gptflow.heads.Generate`."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


class Decoding(Sequence):
    """A sequence that grows by the tokens drawn for it.

    Args:
        limit: most tokens to draw.
        end_ids: tokens that end the continuation.
        seed: of this continuation's own random numbers.
        detokenizer: decodes as the text grows; needed for stop strings and streaming.
        sample: the continuation's number.
    """

    decodes = True

    def __init__(
        self,
        tokens: Rows[int],
        *,
        sampling: Sampling,
        limit: int,
        end_ids: frozenset[int],
        seed: int = 0,
        detokenizer: Detokenizer | None = None,
        sample: int = 0,
        prefix: Prefix | None = None,
        job_class: JobClass = "standard",
    ) -> None:
        super().__init__(tokens, prefix=prefix, job_class=job_class)
        self.sampling = sampling
        self.limit = limit
        self.sample = sample
        self.detokenizer = detokenizer
        self.constraint: Constraint | None = None
        self.output: list[int] = []
        self.finish: FinishReason | None = None
        self.first_token_at: float | None = None
        self.siblings: list[Decoding] = []
        self._end_ids = end_ids
        self._logprobs: list[float] = []
        self._text: list[str] = []
        self._generator = torch.Generator()
        self._generator.manual_seed(hash((seed, sample)) & (2**63 - 1))

    @property
    def most_tokens(self) -> int:
        return self.trunk + self.limit

    @property
    def ended(self) -> bool:
        return self.finish is not None

    def draw(self) -> float:
        """The next of this continuation's own random numbers, in 0..1."""
        return torch.rand((), generator=self._generator, dtype=torch.float64).item()

    def accept(self, token: int, logprob: float) -> None:
        """Take the token that was drawn, with its log-probability under the model."""
        if token in self._end_ids:
            self._end("stop")
            return
        self._logprobs.append(logprob)
        self._append(token)

    def _append(self, token: int) -> None:
        self.output.append(token)
        self.tokens.append(token)
        if self.detokenizer is not None:
            self._text.append(self.detokenizer.push(token))
            if self.detokenizer.stopped:
                self.finish = "stop"
                return
        if len(self.output) >= self.limit:
            self._end(self._at_limit())

    def _at_limit(self) -> FinishReason:
        """Why it ends with its last token."""
        return "length"

    def _end(self, finish: FinishReason) -> None:
        self.finish = finish
        if self.detokenizer is not None:
            self._text.append(self.detokenizer.flush())
            if self.detokenizer.stopped:
                self.finish = "stop"

    def take_text(self) -> str:
        """The text that has become certain since the last call."""
        text = "".join(self._text)
        self._text.clear()
        return text

    def continuation(self, text: str, *, logprobs: bool = False) -> Continuation:
        """The continuation, `text` being that of its tokens."""
        return Continuation(
            text=text if self.detokenizer is None else self.detokenizer.text,
            tokens=tuple(self.output),
            mean_logprob=sum(self._logprobs) / max(len(self.output), 1),
            logprobs=tuple(self._logprobs) if logprobs else (),
            finish=self.finish or "length",
        )


class Structured(Decoding):
    """A `Decoding` whose tokens a grammar admits; tokens it forces are not drawn."""

    constraint: Constraint
    _cut = False
    """Some of the forced tokens did not fit."""

    def constrain(self, constraint: Constraint) -> None:
        """Set the grammar; what it forces at the very start joins the prompt's rows."""
        self.constraint = constraint
        self._force()

    def accept(self, token: int, logprob: float) -> None:
        self.constraint.advance([token])
        super().accept(token, logprob)
        if not self.ended:
            self._force()

    def _force(self) -> None:
        forced = self.constraint.forced()
        self._cut = len(self.output) + len(forced) > self.limit
        for token in forced:
            if not self.ended:
                self._append(token)
        if not self.ended and self.constraint.complete:
            self._end("stop")

    def _at_limit(self) -> FinishReason:
        # The grammar may be further than the output: it has taken all that it forced.
        return "stop" if self.constraint.complete and not self._cut else "length"


class Readout(Sequence):
    """A sequence whose final hidden states are the answer, or what a trained head is given."""

    def add(self, start: int, hidden: torch.Tensor) -> None:
        """Take the hidden states `[rows, width]` of the rows from `start` on."""
        raise NotImplementedError

    @property
    def spoiled(self) -> bool:
        """The model's output was not a number somewhere."""
        raise NotImplementedError


class Pooling(Readout):
    """A sequence whose final hidden states become one vector.

    Args:
        prefix: only for the pooling `last`: the mean needs the hidden states of all rows, and
            keys and values do not hold them.
    """

    def __init__(
        self,
        tokens: Rows[int],
        pooling: PoolingKind,
        *,
        prefix: Prefix | None = None,
        job_class: JobClass,
    ) -> None:
        super().__init__(tokens, prefix=prefix if pooling == "last" else None, job_class=job_class)
        self._pooling = pooling
        self._pooled: torch.Tensor | None = None

    def restart(self) -> None:
        super().restart()
        self._pooled = None

    def add(self, start: int, hidden: torch.Tensor) -> None:
        if self._pooling == "last":
            # A copy: a view would keep the hidden states of the whole step.
            self._pooled = hidden[-1].to(torch.float32, copy=True)
        else:
            total = hidden.float().sum(0)
            self._pooled = total if self._pooled is None else self._pooled + total

    @property
    def spoiled(self) -> bool:
        return self._pooled is not None and not bool(self._pooled.isfinite().all())

    def vector(self, *, normalize: bool) -> torch.Tensor:
        """The pooled vector, `[width]`."""
        assert self._pooled is not None
        pooled = self._pooled / len(self.tokens) if self._pooling == "mean" else self._pooled
        return torch.nn.functional.normalize(pooled, dim=0) if normalize else pooled


class Reading(Readout):
    """A sequence whose final hidden states are wanted row by row, from one row on.

    Args:
        first: the first row that is wanted; `prefix` must not reach it.
        last: the row after the last one that is wanted.
    """

    def __init__(
        self,
        tokens: Rows[int],
        first: int,
        last: int,
        *,
        prefix: Prefix | None = None,
        job_class: JobClass,
    ) -> None:
        super().__init__(tokens, prefix=prefix, job_class=job_class)
        self._first = first
        self._last = last
        self._rows: list[torch.Tensor] = []

    def restart(self) -> None:
        super().restart()
        self._rows.clear()

    def add(self, start: int, hidden: torch.Tensor) -> None:
        low, high = max(self._first, start), min(self._last, start + len(hidden))
        if low < high:
            # A copy: a view would keep the hidden states of the whole step.
            rows = hidden[low - start : high - start].to(torch.float32, copy=True)
            self._rows.append(rows)

    @property
    def spoiled(self) -> bool:
        return not all(bool(rows.isfinite().all()) for rows in self._rows)

    def hidden(self) -> torch.Tensor:
        """The wanted rows, `[rows, width]`."""
        return torch.cat(self._rows)
