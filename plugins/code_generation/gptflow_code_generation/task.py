"""The task `code.generate`."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor

from gptflow.errors import SandboxUnavailable
from gptflow.heads import Generate, Generated
from gptflow.prompt import Prompt
from gptflow.task import Context, Setup, Task
from gptflow_code_generation import source
from gptflow_code_generation.answer import CodeAnswer, SandboxUse, candidate_answer
from gptflow_code_generation.imports import imports_for, undefined_names
from gptflow_code_generation.ranking import Candidate, ranked
from gptflow_code_generation.request import CodeRequest
from gptflow_code_generation.sandbox.limits import Limits
from gptflow_code_generation.sandbox.probe import choose_backend
from gptflow_code_generation.sandbox.trial import Report, run_trial

logger = logging.getLogger(__name__)

TRIALS_AT_ONCE = 2
"""Per worker: generated code must not take the processors that the model computes on."""

_STOPS = ("```", "\nif __name__", "\nprint(", "\nassert ")
_GAP_STOP = ("\n\n\n",)
"""The gap between definitions, for a prompt that a definition follows at once."""

_BLOCK_STOPS = (*_GAP_STOP, "\ndef ", "\nclass ", "\n@", "\n#")
"""The next top-level thing. Of use only once a definition has begun: they would cut off one
that is yet to come."""


class GenerateCode(Task[CodeRequest, Generated, CodeAnswer]):
    """Write or complete Python code, check it, and run its tests in a sandbox."""

    name = "code.generate"
    generate = Prompt.file("generate.j2", truncate="prompt")
    complete = Prompt.file("complete.j2", truncate="opening", keep="end")

    def setup(self, ctx: Setup) -> None:
        """Find a sandbox that holds. Without one code is still written, but never run."""
        self._pool = ThreadPoolExecutor(TRIALS_AT_ONCE, thread_name_prefix="sandbox")
        self._backend: str | None = None
        self._refusal = ""
        try:
            self._backend = choose_backend()
        except SandboxUnavailable as error:
            self._refusal = str(error)
            logger.warning("Tests of generated code will not be run. %s", error)

    def head_for(self, input: CodeRequest) -> Generate:
        stops: tuple[str, ...] = _STOPS
        if input.completes and source.opens_block(input.opening):
            stops += _BLOCK_STOPS
        elif source.ends_in_comment(input.opening):
            stops += _GAP_STOP
        default = 0.0 if input.n == 1 else 0.7
        return Generate(
            n=input.n,
            max_tokens=input.max_new_tokens,
            temperature=default if input.temperature is None else input.temperature,
            top_p=0.95,
            stop=stops,
        )

    async def run(self, input: CodeRequest, ctx: Context) -> CodeAnswer:
        prompt = self.complete if input.completes else self.generate
        opening = input.opening
        variables = {**dict(input), "opening": opening}
        raw = await ctx.ask(self.head_for(input), prompt, variables, stream=True)
        assert isinstance(raw, Generated)
        # Parsing takes a while and needs no event loop.
        candidates = await asyncio.to_thread(_candidates, opening, raw)
        limits = Limits.for_timeout(input.timeout_s)
        if input.tests:
            candidates = await self._try(candidates, input.tests, limits)
        return self._answer(ranked(candidates), limits, ctx)

    async def _try(
        self, candidates: list[Candidate], tests: tuple[str, ...], limits: Limits
    ) -> list[Candidate]:
        """The candidates with their reports; code that occurs twice runs once."""
        loop = asyncio.get_running_loop()
        codes = dict.fromkeys(candidate.code for candidate in candidates if candidate.parses)
        imports = await asyncio.to_thread(imports_for, "\n".join(tests))
        backend = self._backend

        def trial(code: str) -> Report:
            if backend is None:
                return Report(passed=0, failed=0, status="blocked", detail="not run: no sandbox")
            return run_trial(backend, code, tests, imports=imports, limits=limits)

        reports = dict(
            zip(
                codes,
                await asyncio.gather(
                    *(loop.run_in_executor(self._pool, trial, code) for code in codes)
                ),
                strict=True,
            )
        )
        unparsable = Report(passed=0, failed=len(tests), status="syntax", detail="does not parse")
        return [
            dataclasses.replace(candidate, report=reports.get(candidate.code, unparsable))
            for candidate in candidates
        ]

    def _answer(self, candidates: list[Candidate], limits: Limits, ctx: Context) -> CodeAnswer:
        reports = [candidate.report for candidate in candidates if candidate.report is not None]
        warnings: list[str] = []
        sandbox: SandboxUse | None = None
        pass_rate: float | None = None
        if reports and self._backend is None:
            warnings.append(f"The tests were not run. {self._refusal}")
        elif reports:
            walls = {it.code: it.report.wall_s for it in candidates if it.report is not None}
            sandbox = SandboxUse(
                backend=str(self._backend),
                limits=limits.as_dict(),
                wall_ms=round(1e3 * sum(walls.values()), 1),
            )
            pass_rate = sum(report.status == "passed" for report in reports) / len(reports)
            if not pass_rate:
                ctx.abstain("no candidate passes the tests")
        best = candidates[0]
        if not best.parses:
            warnings.append("No candidate parses.")
            ctx.abstain("no candidate parses")
        for warning in warnings:
            ctx.warn(warning)
        return CodeAnswer(
            best=best.code if best.parses else None,
            candidates=[candidate_answer(candidate) for candidate in candidates],
            pass_rate=pass_rate,
            sandbox=sandbox,
            warnings=warnings,
        )


def _candidates(opening: str, raw: Generated) -> list[Candidate]:
    return [
        _candidate(opening, sample.text, sample.mean_logprob, number)
        for number, sample in enumerate(raw.continuations)
    ]


def _candidate(opening: str, text: str, mean_logprob: float, number: int) -> Candidate:
    code = source.clean(opening, text)
    return Candidate(
        code=code or opening + text,
        parses=bool(code),
        lint=tuple(undefined_names(code)),
        mean_logprob=mean_logprob,
        sample=number,
    )
