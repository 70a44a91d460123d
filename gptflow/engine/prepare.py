"""Preparing: from a request to token ids and sequences, in the thread of whoever asks."""

from __future__ import annotations

import dataclasses
import functools
import json
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, cast

from gptflow.engine import trained
from gptflow.engine.adapter_pool import AdapterPool, Lease
from gptflow.engine.constraints import Grammars
from gptflow.engine.detokenizer import Detokenizer
from gptflow.engine.locating import Token, locate
from gptflow.engine.pending import BaselineKey, Pending
from gptflow.engine.prefix import MIN_TOKENS, CommonBeginnings, Prefix, Scope
from gptflow.engine.scoring import Scoring, choose, log_odds
from gptflow.engine.sequence import Decoding, Pooling, Reading, Sampling, Sequence, Structured
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import (
    AdapterMismatch,
    EmptyInput,
    EngineError,
    InputTooLong,
    UnsupportedHead,
)
from gptflow.heads import (
    Choices,
    Choose,
    Chosen,
    Classify,
    Embed,
    Embedded,
    Generate,
    Generated,
    Json,
    MultiHead,
    Parsed,
    Raw,
    Score,
    Scored,
    Tag,
    Tagged,
    Usage,
)
from gptflow.heads import Pooling as PoolingKind
from gptflow.prompt import RenderedPrompt
from gptflow.request import Request

if TYPE_CHECKING:
    from gptflow.adapter import Manifest
    from gptflow.dictionary_tagger import DictionaryTagger
    from gptflow.linear_text import LinearText


class Preparer:
    """Turns requests into `Pending` ones. Thread-safe.

    Args:
        context: most tokens of one sequence.
        adapters: those that requests can name.
    """

    def __init__(self, vocabulary: Vocabulary, context: int, adapters: AdapterPool) -> None:
        self._vocabulary = vocabulary
        self._context = context
        self._adapters = adapters
        self._grammars = Grammars(vocabulary)
        self._beginnings = CommonBeginnings()

    def prepare(self, request: Request) -> Pending:
        """Encode the prompt and lay out the sequences.

        The adapter is the one that its alias stands for now, and stays so for the whole
        request. Its weights are needed only once the request begins.

        Raises:
            GPTFlowError: the request cannot be served, whatever else the engine does.
        """
        alias = request.head.adapter
        if alias is None:
            return self._lay_out(request, None)
        lease = self._adapters.lease(alias)
        pending = self._lay_out(request, lease)
        answer = pending.answer

        def signed(blank: Scoring | None) -> Raw:
            return dataclasses.replace(answer(blank), adapter=lease.info.reference)

        pending.answer = signed
        for sequence in pending.sequences:
            sequence.adapter = lease
        # Whoever keeps the future keeps no adapter.
        pending.future.add_done_callback(functools.partial(_end, weakref.ref(lease)))
        return pending

    def _lay_out(self, request: Request, lease: Lease | None) -> Pending:
        lora = lease.lora if lease else ""
        match request.head, lease:
            case Generate() as head, _:
                return self._generate(request, head, lora)
            case Json() as head, _:
                return self._json(request, head, lora)
            case Choose() as head, _:
                return self._choose(request, head, lora)
            case Score(each=None), Lease() if lease.info.answers("score"):
                return self._trained_score(request, lease, lora)
            case Score(each=None) as head, _:
                return self._score(request, head, lora)
            case Embed() as head, _:
                return self._embed(request, head, lora)
            case Classify() as head, Lease():
                return self._classify(request, head, lease, lora)
            case MultiHead() as head, Lease():
                return self._multi_head(request, head, lease, lora)
            case Tag() as head, Lease():
                return self._tag(request, head, lease, lora)
        raise UnsupportedHead(
            f"The engine does not compute {type(request.head).__name__} without an adapter.",
            hint="Submit it through gptflow.executor, which takes it apart.",
        )

    def _generate(self, request: Request, head: Generate, lora: str) -> Pending:
        ids, prefix = self._encode(request, request.prompt, lora, room=1)
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
                continuations=tuple(
                    s.continuation(self._text(s), logprobs=head.logprobs) for s in samples
                ),
                usage=_usage(samples[0], out=sum(len(s.output) for s in samples)),
            )

        return Pending(request, list(samples), answer)

    def _json(self, request: Request, head: Json, lora: str) -> Pending:
        ids, prefix = self._encode(request, request.prompt, lora, room=1)
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

    def _choose(self, request: Request, head: Choose, lora: str) -> Pending:
        scored, baseline = self._scoring(request, head.texts, head.calibrate, lora)

        def answer(blank: Scoring | None) -> Raw:
            return choose(head, scored, blank, _usage(scored))

        return Pending(request, [scored], answer, baseline)

    def _score(self, request: Request, head: Score, lora: str) -> Pending:
        scored, baseline = self._scoring(request, (head.yes, head.no), True, lora)

        def answer(blank: Scoring | None) -> Raw:
            return Scored(values=(log_odds(scored, blank),), usage=_usage(scored))

        return Pending(request, [scored], answer, baseline)

    def _embed(self, request: Request, head: Embed, lora: str) -> Pending:
        sequence = self._pooling(request, head.pooling, lora)

        def answer(_: Scoring | None) -> Raw:
            vector = sequence.vector(normalize=head.normalize)
            return Embedded(vector=tuple(vector.tolist()), usage=_usage(sequence))

        return Pending(request, [sequence], answer)

    def _trained_score(self, request: Request, lease: Lease, lora: str) -> Pending:
        manifest = _trained(lease)
        name = manifest.head("score")
        sequence = self._pooling(request, manifest.pooling, lora)

        def answer(_: Scoring | None) -> Raw:
            value = lease.heads[name](sequence.vector(normalize=False)).item()
            return Scored(values=(value,), usage=_usage(sequence))

        return Pending(request, [sequence], answer)

    def _classify(self, request: Request, head: Classify, lease: Lease, lora: str) -> Pending:
        manifest = _trained(lease)
        name = manifest.head("classify", head.labels)
        sequence = self._pooling(request, manifest.pooling, lora, manifest=manifest, heads=(name,))

        def answer(_: Scoring | None) -> Raw:
            return _chosen(request, lease, name, sequence, head.labels, _usage(sequence))

        return Pending(request, [sequence], answer)

    def _multi_head(self, request: Request, asked: MultiHead, lease: Lease, lora: str) -> Pending:
        manifest = _trained(lease)
        for name, each in asked.heads.items():
            manifest.head("classify", each.labels, name)
        sequence = self._pooling(
            request, manifest.pooling, lora, manifest=manifest, heads=tuple(asked.heads)
        )

        def answer(_: Scoring | None) -> Raw:
            chosen = {
                name: _chosen(request, lease, name, sequence, each.labels, Usage())
                for name, each in asked.heads.items()
            }
            return Choices(by_head=chosen, usage=_usage(sequence))

        return Pending(request, [sequence], answer)

    def _tag(self, request: Request, head: Tag, lease: Lease, lora: str) -> Pending:
        manifest = _trained(lease)
        name = manifest.head("tag", head.labels)
        spec = manifest.heads[name]
        assert spec.kind == "tag"
        if request.floor_text and name in manifest.replaced:
            return self._look_up(request, lease, lora, name)
        ids, prefix = self._encode(request, request.prompt, lora, room=0)
        first, tokens = self._locate(request, copies=2 if spec.echo else 1)
        if not tokens:  # the text is blank
            raise EmptyInput("There is no text to tag.")
        if prefix is not None:  # hidden states are not kept: the text's rows must be computed
            prefix = prefix._replace(
                ids=prefix.ids[:first],
                author=min(prefix.author, first),
                common=min(prefix.common, first),
            )
        sequence = Reading(
            ids, first, first + len(tokens), prefix=prefix, job_class=request.job_class
        )

        def answer(_: Scoring | None) -> Raw:
            spans = trained.tag(spec, lease.heads[name], sequence.hidden(), tokens, request.text)
            return Tagged(spans=spans, calibrated=True, usage=_usage(sequence))

        return Pending(request, [sequence], answer)

    def _look_up(self, request: Request, lease: Lease, lora: str, name: str) -> Pending:
        """The spans of the dictionary that is better than the trained head."""
        sequence = self._pooling(request, "last", lora, manifest=lease.info.manifest, heads=(name,))

        def answer(_: Scoring | None) -> Raw:
            floor = cast("DictionaryTagger", lease.floors[name])
            spans = floor.spans(request.floor_text)
            return Tagged(spans=spans, calibrated=True, usage=_usage(sequence))

        return Pending(request, [sequence], answer)

    def _locate(self, request: Request, *, copies: int) -> tuple[int, list[Token]]:
        """The tokens of the text to tag: the first one's number, and where each stands in it."""
        prompt, text = request.prompt, request.text
        if not isinstance(prompt, RenderedPrompt):
            raise UnsupportedHead("Tag needs a rendered prompt, not bare token ids.")
        located = locate(self._vocabulary, prompt, text)
        if located.copies < copies:
            raise AdapterMismatch(
                f"The prompt holds the text to tag {located.copies} times; its adapter was "
                f"trained with {copies}.",
                hint="Give the task the prompt that the adapter was trained with.",
            )
        return located.first, located.tokens

    def _pooling(
        self,
        request: Request,
        pooling: PoolingKind,
        lora: str,
        *,
        manifest: Manifest | None = None,
        heads: tuple[str, ...] = (),
    ) -> Pooling:
        ids, prefix = self._encode(request, request.prompt, lora, room=0)
        if manifest is not None and request.floor_text and set(heads) <= manifest.replaced:
            ids, prefix = ids[:1], None  # nothing that the model says is looked at
        return Pooling(ids, pooling, prefix=prefix, job_class=request.job_class)

    def _scoring(
        self, request: Request, texts: tuple[str, ...], calibrate: bool, lora: str
    ) -> tuple[Scoring, BaselineKey | None]:
        end = self._end(request.prompt)
        continuations = tuple(
            self._vocabulary.encode_continuation(text, after=end) for text in texts
        )
        longest = max(map(len, continuations))
        ids, prefix = self._encode(request, request.prompt, lora, room=longest)
        baseline = None
        if calibrate and request.baseline is not None:
            blank, _ = self._encode(request, request.baseline, lora, room=longest)
            baseline = BaselineKey(blank, continuations, lora)
        scored = Scoring(
            ids, continuations, room=self._context, prefix=prefix, job_class=request.job_class
        )
        return scored, baseline

    def _encode(
        self,
        request: Request,
        prompt: RenderedPrompt | tuple[int, ...],
        lora: str,
        *,
        room: int,
    ) -> tuple[tuple[int, ...], Prefix | None]:
        """Token ids of a prompt that leaves `room` tokens, and what it may start from."""
        ids = self._vocabulary.encode(prompt) if isinstance(prompt, RenderedPrompt) else prompt
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
        if len(ids) <= MIN_TOKENS or prompt is request.baseline:
            return ids, None
        author = 0
        if isinstance(prompt, RenderedPrompt):
            author = len(self._vocabulary.prefix(prompt, ids))
        able = ids[:-1]  # at least one token must be computed
        common = self._beginnings.find(Scope(lora, request.tenant), able)
        return ids, Prefix(
            able,
            lora=lora,
            tenant=request.tenant,
            author=author if author >= MIN_TOKENS else 0,
            common=common if common >= author + MIN_TOKENS else 0,
        )

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


def _end(lease: weakref.ref[Lease], _: Future[Raw]) -> None:
    """A request has its answer."""
    if (ended := lease()) is not None:
        ended.end()


def _chosen(
    request: Request,
    lease: Lease,
    name: str,
    sequence: Pooling,
    labels: tuple[str, ...],
    usage: Usage,
) -> Chosen:
    """The answer of a trained head, of a simple model that is as good, or of both together.

    The simple model needs the text as it was given; without it the head answers.
    """
    manifest = _trained(lease)
    spec = manifest.heads[name]
    assert spec.kind == "classify"
    floor = manifest.floors.get(name) if request.floor_text else None
    if floor is None:
        logits = lease.heads[name](sequence.vector(normalize=False))
        return trained.choose(spec, logits, labels, usage)
    simple = cast("LinearText", lease.floors[name])
    if floor.weight is None:
        logits = trained.as_logits(simple.logits(request.floor_text, spec.labels))
        cooled = spec.model_copy(update={"temperature": floor.temperature, "thresholds": {}})
        return trained.choose(cooled, logits, labels, usage)
    said = trained.as_logits(simple.log_probs(request.floor_text, spec.labels))
    logits = lease.heads[name](sequence.vector(normalize=False)) + floor.weight * said
    return trained.choose(spec, logits, labels, usage)


def _trained(lease: Lease) -> Manifest:
    """The manifest of an adapter that has trained heads.

    Raises:
        AdapterMismatch: it has none, being bare LoRA weights.
    """
    manifest = lease.info.manifest
    if manifest is None or not manifest.heads:
        raise AdapterMismatch(f"Adapter {lease.info.alias!r} has no trained head.")
    return manifest
