"""The context of a running job: what `gptflow.task.Context` promises, on an engine.

Heads that are made of others are taken apart here: `Classify`, `MultiHead`, `Tag` and a
`Score` over many items become requests that an engine knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gptflow import fitting
from gptflow.concurrency import gather
from gptflow.errors import AdapterNotFound, GPTFlowError, PluginError
from gptflow.fitting import Fitted
from gptflow.heads import (
    Choices,
    Choose,
    Chosen,
    Classify,
    Embed,
    Embedded,
    Generate,
    Generated,
    Head,
    Json,
    MultiHead,
    Parsed,
    Raw,
    Score,
    Scored,
    Span,
    Tag,
    Tagged,
    Usage,
)
from gptflow.prompt import CONTENT_FREE, Prompt, RenderedPrompt
from gptflow.request import Delta, Engine, HeldAdapter, JobClass, Request, ServesAdapters
from gptflow.result import Provenance, Result

if TYPE_CHECKING:
    from gptflow.adapter_info import AdapterInfo


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What running a job needs to know of it. `on_delta` is given the text of streamed steps."""

    id: str
    task: str
    input: Any
    seed: int | None = None
    tenant: str = "default"
    job_class: JobClass = "standard"
    deadline: float | None = None
    on_delta: Callable[[Delta], None] | None = None


Map = Callable[[Job, str, Sequence[Any]], Awaitable[list[Result]]]
"""Runs, for a job, another task on many inputs; results are in the inputs' order."""


class JobContext:
    """One job's `Context`: renders, asks, and keeps count for the provenance."""

    def __init__(self, engine: Engine, job: Job, *, plugin: str, map: Map) -> None:
        self._engine = engine
        self._job = job
        self._plugin = plugin
        self._map = map
        self._seed = job.seed if job.seed is not None else seed_of(job.id)
        self._draws = 0
        self._usage = Usage()
        self._truncated = False
        self._abstained: str | None = None
        self._warnings: list[str] = []
        self._prompts: dict[str, None] = {}
        self._adapters: dict[str, None] = {}
        self._keeper = engine if isinstance(engine, ServesAdapters) else None
        self._held: dict[str, HeldAdapter | None] = {}

    @property
    def job_id(self) -> str:
        return self._job.id

    @property
    def tenant(self) -> str:
        return self._job.tenant

    def abstain(self, reason: str) -> None:
        self._abstained = reason

    def warn(self, message: str) -> None:
        self._warnings.append(message)

    def publish(self, text: str) -> None:
        """Give whoever follows the job a piece of text that no model has written."""
        if self._job.on_delta is not None:
            self._job.on_delta(Delta(text))

    def is_trained(self, head: Head) -> bool:
        self._hold(head.adapter)
        info = self._trained_for(head)
        return info is not None and (info.manifest is None or not info.manifest.loses)

    def _trained_for(self, head: Head) -> AdapterInfo | None:
        """The adapter that was trained for this head, where it is at hand."""
        match head:
            case Classify() | MultiHead():
                kind = "classify"
            case Tag():
                kind = "tag"
            case Score():
                kind = "score"
            case _:
                return None
        info = None if head.adapter is None else self._info(head.adapter)
        return info if info is not None and info.answers(kind) else None

    async def map(self, task: str, inputs: Sequence[Any]) -> list[Result]:
        return await self._map(dataclasses.replace(self._job, seed=self._seed), task, inputs)

    async def generate(
        self,
        prompt: Prompt | str,
        variables: Mapping[str, Any] | None = None,
        *,
        stream: bool = False,
        **options: Any,
    ) -> Generated:
        head = _build(Generate, options)
        return cast(Generated, await self.ask(head, prompt, variables, stream=stream))

    async def json(
        self,
        prompt: Prompt | str,
        variables: Mapping[str, Any] | None = None,
        *,
        schema: Any,
        **options: Any,
    ) -> Parsed:
        head = _build(Json, {"schema": schema, **options})
        return cast(Parsed, await self.ask(head, prompt, variables))

    async def choose(
        self,
        prompt: Prompt | str,
        variables: Mapping[str, Any] | None = None,
        *,
        labels: Sequence[str],
        **options: Any,
    ) -> Chosen:
        head = _build(Choose, {"labels": tuple(labels), **options})
        return cast(Chosen, await self.ask(head, prompt, variables))

    async def score(
        self,
        prompt: Prompt,
        variables: Mapping[str, Any],
        items: Sequence[Any],
        *,
        baseline: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Scored:
        head = _build(Score, options)
        per_item = [{**variables, "item": item} for item in items]
        return await self._score(head, prompt, per_item, baseline)

    async def embed(self, text: str, **options: Any) -> Embedded:
        return cast(Embedded, await self.ask(_build(Embed, options), text))

    async def ask(
        self,
        head: Head,
        prompt: Prompt | str,
        variables: Mapping[str, Any] | None = None,
        *,
        stream: bool = False,
    ) -> Raw:
        values = dict(variables or {})
        self._hold(head.adapter)
        match head:
            case Classify() | MultiHead() | Tag() if self._trained_for(head) is not None:
                try:
                    return await self._ask_trained(head, prompt, values)
                except AdapterNotFound:  # it has just been unloaded
                    return await self.ask(_untrained(head), prompt, values)
            case Score(adapter=str(alias)) if self._info(alias) is None:
                return await self.ask(_untrained(head), prompt, values)
            case Classify():
                return await self._classify(head, prompt, values)
            case MultiHead():
                chosen = await gather(
                    *(self.ask(each, prompt, values) for each in head.heads.values())
                )
                return Choices(
                    by_head=dict(zip(head.heads, cast(list[Chosen], chosen), strict=True))
                )
            case Tag():
                return await self._tag(head, prompt, values)
            case Score(each=str(field)) if not isinstance(prompt, str):
                items = [{**values, "item": item} for item in values[field]]
                return await self._score(head, prompt, items, None)
            case _:
                fitted = await self._fit(head, prompt, values)
                baseline = _baseline(head, prompt, fitted)
                return await self._submit(head, fitted.prompt, baseline=baseline, stream=stream)

    def _hold(self, alias: str | None) -> None:
        """Keep the version of an adapter that the job has met first until the job ends.

        All of its requests are answered by it, whatever is promoted meanwhile; or without one
        where there was none.
        """
        if alias is None or alias in self._held or self._keeper is None:
            return
        self._held[alias] = None
        with contextlib.suppress(AdapterNotFound):
            self._held[alias] = self._keeper.hold_adapter(alias)

    def _info(self, alias: str) -> AdapterInfo | None:
        if alias not in self._held:  # an engine whose adapters are not ours to hold
            return self._engine.adapters().get(alias)
        held = self._held[alias]
        return None if held is None else held.info

    async def _ask_trained(
        self, head: Classify | MultiHead | Tag, prompt: Prompt | str, values: dict[str, Any]
    ) -> Raw:
        fitted = await self._fit(head, prompt, values)
        for_floors = self._text_for_floors(head, values)
        if not isinstance(head, Tag):
            raw = await self._submit(head, fitted.prompt, floor_text=for_floors)
            self._doubt(raw)
            return raw
        if for_floors:  # which is all of the field
            return await self._submit(head, fitted.prompt, floor_text=for_floors)
        whole = str(values.get(head.field, ""))
        # What the prompt kept of the field, be it all of it.
        text = max((d for d in fitted.prompt.data if d in whole), key=len, default=whole)
        raw = await self._submit(head, fitted.prompt, text=text)
        cut_in_front = isinstance(prompt, Prompt) and prompt.keep == "end"
        ahead = max(whole.rfind(text) if cut_in_front else whole.find(text), 0)
        spans = (
            dataclasses.replace(span, start=span.start + ahead, end=span.end + ahead)
            for span in cast(Tagged, raw).spans
        )
        return dataclasses.replace(cast(Tagged, raw), spans=tuple(spans))

    def _text_for_floors(self, head: Classify | MultiHead | Tag, values: Mapping[str, Any]) -> str:
        """What the simple models read that answer for an adapter's heads, or with them."""
        info = None if head.adapter is None else self._info(head.adapter)
        if info is None or info.manifest is None or not info.manifest.floors:
            return ""
        manifest, found = info.manifest, ""
        asked = (
            list(head.heads)
            if isinstance(head, MultiHead)
            else [manifest.head("tag" if isinstance(head, Tag) else "classify", head.labels)]
        )
        for name in asked:
            floor = manifest.floors.get(name)
            text = "" if floor is None else values.get(floor.field)
            if floor is not None and isinstance(text, str) and text:
                found = text
                if name in manifest.replaced:
                    self.warn(
                        f"{name}: a simple model answers ({floor.kind}); no adapter is better"
                    )
        return found

    def _doubt(self, raw: Raw) -> None:
        """Abstain where a trained head is less sure than it has to be."""
        by_head = raw.by_head if isinstance(raw, Choices) else {"": cast(Chosen, raw)}
        if not any(chosen.in_scope for chosen in by_head.values()):
            self.abstain("the text is about none of the labels")
        for name, chosen in by_head.items():
            sure = chosen.probs[chosen.label]
            if sure < chosen.threshold:
                which = f"{name} {chosen.label!r}" if name else repr(chosen.label)
                self.abstain(f"{which} has probability {sure:.2f}, below {chosen.threshold:.2f}")

    async def _classify(self, head: Classify, prompt: Prompt | str, values: dict[str, Any]) -> Raw:
        # Without a trained head its untrained form answers, and says so.
        chosen = await self.ask(head.as_choose(), head.fallback or prompt, values)
        return dataclasses.replace(cast(Chosen, chosen), calibrated=False)

    async def _tag(self, head: Tag, prompt: Prompt | str, values: dict[str, Any]) -> Tagged:
        schema = {
            "type": "array",
            "maxItems": 16,
            "items": {
                "type": "object",
                "properties": {
                    "text": {"type": "string", "maxLength": 80},
                    "label": {"enum": list(head.labels)},
                },
                "required": ["text", "label"],
                "additionalProperties": False,
            },
        }
        raw = await self.ask(Json(schema=schema), prompt, values)
        spans = _locate(cast(Parsed, raw).value, str(values.get(head.field, "")))
        return Tagged(spans=spans, usage=raw.usage)

    async def _score(
        self,
        head: Score,
        prompt: Prompt,
        per_item: Sequence[dict[str, Any]],
        baseline: Mapping[str, Any] | None,
    ) -> Scored:
        head = dataclasses.replace(head, each=None)  # one request an item

        async def one(values: dict[str, Any]) -> Scored:
            fitted = await self._fit(head, prompt, values)
            free = None if baseline is None else prompt.render({**fitted.variables, **baseline})
            return cast(Scored, await self._submit(head, fitted.prompt, baseline=free))

        parts = await gather(*map(one, per_item))
        return Scored(values=tuple(part.values[0] for part in parts))

    async def _fit(self, head: Head, prompt: Prompt | str, values: dict[str, Any]) -> Fitted:
        if isinstance(prompt, Prompt):
            self._prompts.setdefault(prompt.sha256)
        given = (self._engine, head, prompt, values, self._job.task)
        small = fitting.is_small(prompt, values)
        fitted = fitting.fit(*given) if small else await asyncio.to_thread(fitting.fit, *given)
        self._truncated |= fitted.truncated
        return fitted

    async def _submit(
        self,
        head: Head,
        rendered: RenderedPrompt,
        *,
        baseline: RenderedPrompt | None = None,
        text: str = "",
        floor_text: str = "",
        stream: bool = False,
    ) -> Raw:
        job = self._job
        self._hold(head.adapter)
        if head.adapter is not None and (held := self._held.get(head.adapter)) is not None:
            head = dataclasses.replace(head, adapter=held.info.reference)
        request = Request(
            prompt=rendered,
            head=head,
            baseline=baseline,
            text=text,
            floor_text=floor_text,
            seed=(self._seed + self._draws) % 2**63,
            on_delta=job.on_delta if stream else None,
            plugin=self._plugin,
            tenant=job.tenant,
            job_class=job.job_class,
            deadline=job.deadline,
        )
        self._draws += 1
        # Tokenising a long prompt takes a while and needs no event loop.
        submitted = asyncio.create_task(asyncio.to_thread(self._engine.submit, request))
        try:
            raw = await asyncio.wrap_future(await asyncio.shield(submitted))
        except asyncio.CancelledError:
            # A request that is still on its way to the engine is stopped once it is there.
            submitted.add_done_callback(lambda _: self._engine.cancel(request.id))
            raise
        self._usage += raw.usage
        if raw.adapter is not None:
            self._adapters.setdefault(raw.adapter)
        return raw

    def success(self, output: Any, seconds: float) -> Result:
        return Result(
            id=self._job.id,
            task=self._job.task,
            state="done",
            output=output,
            provenance=self._provenance(),
            abstained=self._abstained,
            warnings=tuple(self._warnings),
            timings={"running": seconds},
        )

    def failure(self, error: GPTFlowError, seconds: float) -> Result:
        return Result.failure(
            self._job.id,
            self._job.task,
            error,
            provenance=self._provenance(),
            warnings=tuple(self._warnings),
            timings={"running": seconds},
        )

    def _provenance(self) -> Provenance:
        model = self._engine.model
        return Provenance(
            model={"id": model.id, "sha256": model.sha256},
            adapter=", ".join(self._adapters) or None,
            prompt_sha256=_combine(list(self._prompts)),
            seed=self._seed,
            tokens_in=self._usage.tokens_in,
            tokens_out=self._usage.tokens_out,
            truncated=self._truncated,
        )


H = TypeVar("H", bound=Head)


def _untrained(head: H) -> H:
    return dataclasses.replace(head, adapter=None)


def _baseline(head: Head, prompt: Prompt | str, fitted: Fitted) -> RenderedPrompt | None:
    """The content-free prompt of a `Choose`, from the variables that were found to fit."""
    if not isinstance(head, Choose) or not head.calibrate:
        return None
    if head.blank and isinstance(prompt, Prompt):
        return prompt.render({**fitted.variables, **dict.fromkeys(head.blank, CONTENT_FREE)})
    return fitted.prompt.content_free()


def _build(head: type[Any], options: Mapping[str, Any]) -> Any:
    try:
        return head(**options)
    except (TypeError, ValueError) as error:
        raise PluginError(f"{head.__name__}: {error}.") from None


def seed_of(name: str) -> int:
    """A seed of the random draws that depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")


def item_seed(seed: int | None, index: int) -> int | None:
    """The seed of one of many items: the same wherever the item is run."""
    return None if seed is None else seed_of(f"{seed}/{index}")


def _combine(hashes: list[str]) -> str | None:
    if len(hashes) <= 1:
        return hashes[0] if hashes else None
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def _locate(value: Any, text: str) -> tuple[Span, ...]:
    """Find each listed span in the text: left to right, none twice, strangers dropped."""
    spans: list[Span] = []
    seen: dict[str, int] = {}
    for entry in value:
        start = text.find(entry["text"], seen.get(entry["text"], 0)) if entry["text"] else -1
        if start >= 0:
            end = start + len(entry["text"])
            seen[entry["text"]] = end
            spans.append(Span(text=entry["text"], label=entry["label"], start=start, end=end))
    return tuple(sorted(spans, key=lambda span: (span.start, span.end)))
