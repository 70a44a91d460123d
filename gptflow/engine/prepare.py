"""Preparing: from a request to token ids and sequences, in the thread of whoever asks."""

from __future__ import annotations

import json

from gptflow.engine.constraints import Grammars
from gptflow.engine.detokenizer import Detokenizer
from gptflow.engine.pending import BaselineKey, Pending
from gptflow.engine.prefix import MIN_TOKENS, CommonBeginnings, Prefix
from gptflow.engine.scoring import Scoring, choose, log_odds
from gptflow.engine.sequence import Decoding, Pooling, Sampling, Sequence, Structured
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import AdapterNotFound, EmptyInput, EngineError, InputTooLong, UnsupportedHead
from gptflow.heads import (
    Choose,
    Embed,
    Embedded,
    Generate,
    Generated,
    Json,
    Parsed,
    Raw,
    Score,
    Scored,
    Usage,
)
from gptflow.prompt import RenderedPrompt
from gptflow.request import Request


class Preparer:
    """Turns requests into `Pending` ones. Thread-safe.

    Args:
        context: most tokens of one sequence.
    """

    def __init__(self, vocabulary: Vocabulary, context: int) -> None:
        self._vocabulary = vocabulary
        self._context = context
        self._grammars = Grammars(vocabulary)
        self._beginnings = CommonBeginnings()

    def prepare(self, request: Request) -> Pending:
        """Encode the prompt and lay out the sequences.

        Raises:
            GPTFlowError: the request cannot be served, whatever else the engine does.
        """
        head = request.head
        if head.adapter is not None:
            raise AdapterNotFound(f"No adapter {head.adapter!r} is loaded.")
        match head:
            case Generate():
                return self._generate(request, head)
            case Json():
                return self._json(request, head)
            case Choose():
                return self._choose(request, head)
            case Score(each=None):
                return self._score(request, head)
            case Embed():
                return self._embed(request, head)
        raise UnsupportedHead(
            f"The engine does not compute {type(head).__name__} by itself.",
            hint="Submit it through gptflow.executor, which takes it apart.",
        )

    def _generate(self, request: Request, head: Generate) -> Pending:
        ids, prefix = self._encode(request, request.prompt, room=1)
        chat = isinstance(request.prompt, RenderedPrompt) and request.prompt.is_chat
        stop = head.stop + (self._vocabulary.chat.stop if chat else ())
        samples = [
            Decoding(
                ids,
                prefix=prefix,
                job_class=request.job_class,
                sampling=Sampling(
                    temperature=head.temperature,
                    top_k=head.top_k,
                    top_p=head.top_p,
                    min_p=head.min_p,
                    repetition_penalty=head.repetition_penalty,
                ),
                limit=min(head.max_tokens, self._context - len(ids)),
                end_ids=frozenset() if request.ignore_eos else self._vocabulary.eos_ids,
                seed=request.seed,
                sample=sample,
                detokenizer=self._detokenizer(request, stop),
            )
            for sample in range(head.n)
        ]
        samples[0].siblings = samples[1:]

        def answer(_: Scoring | None) -> Raw:
            return Generated(
                continuations=tuple(s.continuation(self._text(s)) for s in samples),
                usage=_usage(samples[0], out=sum(len(s.output) for s in samples)),
            )

        return Pending(request, list(samples), answer)

    def _json(self, request: Request, head: Json) -> Pending:
        ids, prefix = self._encode(request, request.prompt, room=1)
        sequence = Structured(
            ids,
            prefix=prefix,
            job_class=request.job_class,
            sampling=Sampling(temperature=head.temperature),
            limit=min(head.max_tokens, self._context - len(ids)),
            end_ids=self._vocabulary.eos_ids,
            seed=request.seed,
            detokenizer=self._detokenizer(request),
        )
        sequence.constrain(self._grammars.constraint(head.json_schema))

        def answer(_: Scoring | None) -> Raw:
            if sequence.finish == "length":
                raise EngineError(
                    f"The JSON value was not complete after {len(sequence.output)} tokens.",
                    hint="Raise max_tokens, or bound the schema's strings and lists.",
                )
            text = self._text(sequence)
            return Parsed(
                value=json.loads(text), text=text, usage=_usage(sequence, out=len(sequence.output))
            )

        return Pending(request, [sequence], answer)

    def _choose(self, request: Request, head: Choose) -> Pending:
        scored, baseline = self._scoring(request, head.texts, head.calibrate)

        def answer(blank: Scoring | None) -> Raw:
            return choose(head, scored, blank, _usage(scored))

        return Pending(request, [scored], answer, baseline)

    def _score(self, request: Request, head: Score) -> Pending:
        scored, baseline = self._scoring(request, (head.yes, head.no), True)

        def answer(blank: Scoring | None) -> Raw:
            return Scored(values=(log_odds(scored, blank),), usage=_usage(scored))

        return Pending(request, [scored], answer, baseline)

    def _embed(self, request: Request, head: Embed) -> Pending:
        ids, _ = self._encode(request, request.prompt, room=0)
        sequence = Pooling(ids, head.pooling, job_class=request.job_class)

        def answer(_: Scoring | None) -> Raw:
            vector = sequence.vector(normalize=head.normalize)
            return Embedded(vector=tuple(vector.tolist()), usage=_usage(sequence))

        return Pending(request, [sequence], answer)

    def _scoring(
        self, request: Request, texts: tuple[str, ...], calibrate: bool
    ) -> tuple[Scoring, BaselineKey | None]:
        end = self._end(request.prompt)
        continuations = tuple(
            self._vocabulary.encode_continuation(text, after=end) for text in texts
        )
        longest = max(map(len, continuations))
        ids, prefix = self._encode(request, request.prompt, room=longest)
        baseline = None
        if calibrate and request.baseline is not None:
            blank, _ = self._encode(request, request.baseline, room=longest)
            baseline = (blank, continuations)
        scored = Scoring(
            ids, continuations, room=self._context, prefix=prefix, job_class=request.job_class
        )
        return scored, baseline

    def _encode(
        self, request: Request, prompt: RenderedPrompt | tuple[int, ...], *, room: int
    ) -> tuple[tuple[int, ...], Prefix | None]:
        """Token ids of a prompt that leaves `room` tokens, and its reusable prefix."""
        if isinstance(prompt, RenderedPrompt):
            ids = self._vocabulary.encode(prompt)
            head = self._vocabulary.prefix(prompt, ids)
            prefix = Prefix(head) if len(head) >= MIN_TOKENS else None
        else:
            ids = prompt
            prefix = self._beginnings.find(request.tenant, ids)
        if not ids:
            raise EmptyInput("The prompt is empty.")
        if len(ids) + room > self._context:
            raise InputTooLong(
                f"The prompt takes {len(ids)} tokens and the answer at least {room}; "
                f"the context holds {self._context}.",
                hint="Shorten the input, or let the prompt truncate a variable.",
            )
        if not all(0 <= id_ < self._vocabulary.size for id_ in ids):
            raise EngineError(f"A token id is not in 0..{self._vocabulary.size - 1}.")
        return ids, prefix

    def _end(self, prompt: RenderedPrompt | tuple[int, ...]) -> str:
        """The last of the prompt's text, to see how a continuation joins it."""
        if isinstance(prompt, RenderedPrompt):
            return "".join(segment.text for segment in self._vocabulary.segments(prompt)[-2:])
        return self._vocabulary.decode(prompt[-8:])

    def _detokenizer(self, request: Request, stop: tuple[str, ...] = ()) -> Detokenizer | None:
        if not stop and request.on_delta is None:
            return None
        return Detokenizer(self._vocabulary.decode, stop)

    def _text(self, sequence: Decoding) -> str:
        if sequence.detokenizer is not None:
            return sequence.detokenizer.text
        return self._vocabulary.decode(sequence.output)


def _usage(sequence: Sequence, *, out: int = 0) -> Usage:
    return Usage(tokens_in=sequence.trunk, tokens_out=out, cached=sequence.cached)
