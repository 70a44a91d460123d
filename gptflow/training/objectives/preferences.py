"""Preferences: `Generate`, trained on which of two answers is better, by DPO.

Direct preference optimisation (Rafailov et al. 2023, equation 7): with w the better answer, l the
worse one and r(y) = log p(y | prompt) - log p_reference(y | prompt), the loss of a pair is
-log sigmoid(beta (r(w) - r(l))). The reference is the model that the run began with. Its
log-probabilities are computed once and kept in the run's folder. Answers count from their first
token to the one that ends them.

What is learnt so may be that longer answers are better, or ones that say things again. The figures
hold how long and how repetitive greedy answers were before and are now.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from gptflow.adapter import HeadSpec
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import BadRows, NotTrainable
from gptflow.heads import Generate, Head
from gptflow.plugins import AnyTask
from gptflow.prompt import RenderedPrompt
from gptflow.training.backbone import Backbone
from gptflow.training.data.rows import Preference, Turn
from gptflow.training.evaluation.answers import Indices
from gptflow.training.example import Example, Text
from gptflow.training.heads import TrainedHeads
from gptflow.training.kept import kept
from gptflow.training.objectives.dialogues import answer_ids, conversation
from gptflow.training.objectives.generating import GeneratingObjective
from gptflow.training.objectives.objective import Start
from gptflow.training.objectives.token_losses import token_losses
from gptflow.training.recording import TaskRecorder
from gptflow.training.settings import TrainingSettings

NAME = "preference"

REFERENCE = "reference.json"
"""In a run's folder: what the model that it began with makes of the answers."""

SAMPLES, SAMPLE_TOKENS = 16, 64
"""Prompts that are answered before and after, and the most tokens of an answer."""

GROWN, LONGER, REPEATED = 1.5, 1.5, 0.1
"""What is warned of: answers so many times as long, chosen ones so many times as long as rejected
ones, and so much more of an answer that was said before."""

_GRAM = 4

_TOGETHER = 64
"""Pairs whose reference is computed before progress is told."""

Pair = tuple[float, float]
"""Log-probabilities of the chosen and of the rejected answer."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PreferenceAnswers:
    """How much more a model is for the better answers than its reference is.

    Attributes:
        chosen: `[pairs]`, beta r(w).
        rejected: `[pairs]`, beta r(l).
    """

    chosen: np.ndarray[Any, np.dtype[np.float64]]
    rejected: np.ndarray[Any, np.dtype[np.float64]]
    primary: str = "preference_logprob"

    def __len__(self) -> int:
        return len(self.chosen)

    def metrics(self, indices: Indices | None = None) -> Mapping[str, float]:
        """Accuracy (a tie is half right), margin, the mean log-probability of a preference."""
        where = slice(None) if indices is None else indices
        chosen, rejected = self.chosen[where], self.rejected[where]
        gaps = chosen - rejected
        return {
            "preference_accuracy": float(((gaps > 0) + 0.5 * (gaps == 0)).mean()),
            "margin": float(gaps.mean()),
            "preference_logprob": float(-np.logaddexp(0, -gaps).mean()),
            "chosen_reward": float(chosen.mean()),
            "rejected_reward": float(rejected.mean()),
        }


class _Output(NamedTuple):
    """The log-probabilities of an example's answers, and the chosen one's last hidden state.

    Attributes:
        exact: computed in float32.
    """

    chosen: float
    rejected: float
    last: torch.Tensor
    exact: bool


class PreferenceObjective(GeneratingObjective[Preference]):
    """Learns to give better answers rather than worse ones.

    An example's texts are the prompt with the chosen answer and with the rejected one; its target
    is how many tokens the prompt has.
    """

    primary = "preference_logprob"
    staged = False

    def __init__(
        self,
        recorder: TaskRecorder,
        vocabulary: Vocabulary,
        head: Head,
        settings: TrainingSettings,
    ) -> None:
        super().__init__(recorder, vocabulary)
        if not isinstance(head, Generate):
            raise NotTrainable(f"A {type(head).__name__} head is not trained on preferences.")
        if settings.method == "head":
            raise NotTrainable(
                "A Generate head has no weights of its own.",
                hint="Train with `--method lora` or `--method full`.",
            )
        if vocabulary.end_id is None:
            raise NotTrainable("The model has no token that ends an answer.")
        self._end = vocabulary.end_id
        self._ends = vocabulary.eos_ids | {vocabulary.end_id}
        self._beta = settings.beta
        self._most = min(head.max_tokens, SAMPLE_TOKENS)
        self._reference: dict[tuple[tuple[int, ...], ...], Pair] = {}
        self._exact: dict[tuple[tuple[int, ...], ...], Pair] = {}
        self._prompts: list[tuple[int, ...]] = []
        self._before: list[list[int]] = []
        self._lengths = (0.0, 0.0)
        self._longer = 0.5

    def prepare(self, train: Sequence[Preference]) -> None:
        asked_of(self.recorder.task, train[0])

    def examples(self, rows: Sequence[Preference]) -> list[Example]:
        task = self.recorder.task
        requests = self.recorder.record([asked_of(task, row) for row in rows], rows)
        made = []
        for number, (row, request) in enumerate(zip(rows, requests, strict=True)):
            assert isinstance(request.prompt, RenderedPrompt)
            prompt = self.vocabulary.encode(request.prompt)
            texts = []
            for answer in (row.chosen, row.rejected):
                ids = answer_ids(self.vocabulary, request.prompt, answer)
                texts.append(Text((*prompt, *ids, self._end)))
            if (longest := max(map(len, texts))) > self.recorder.context:
                raise BadRows(
                    f"{row.origin}: prompt and answer are {longest} tokens, and the context is "
                    f"{self.recorder.context}.",
                    hint="Shorten the answer or take the row out.",
                )
            made.append(Example(tuple(texts), len(prompt), 1.0, number))
        return made

    def begin(self, start: Start) -> None:
        examples = list({_key(e): e for e in (*start.train, *start.dev, *start.measured)}.values())
        self._prompts = list(dict.fromkeys(e.texts[0].ids[: e.target] for e in start.measured))[
            :SAMPLES
        ]

        judged = list({_key(e): e for e in (*start.dev, *start.measured)}.values())

        def pairs(of: Sequence[Example]) -> list[Pair]:
            found: list[Pair] = []
            for at in range(0, len(of), _TOGETHER):
                outputs = start.predict(of[at : at + _TOGETHER])
                found += [(output.chosen, output.rejected) for output in outputs]
                start.progress("reference", len(found), len(of))
            return found

        def compute() -> dict[str, Any]:
            start.note("computing the reference once")
            found: dict[str, Any] = {"pairs": pairs(examples), "exact": []}
            if not start.backbone.exact:
                with start.backbone.in_float32():  # as what is measured in the end
                    found["exact"] = pairs(judged)
            return found | {"samples": self._sample(start.backbone)}

        found = kept(start.folder / REFERENCE, [_key(e) for e in examples], compute)
        self._reference = _by_key(examples, found["pairs"])
        self._exact = _by_key(judged, found["exact"]) if found["exact"] else self._reference
        self._before = found["samples"]
        counts = np.array([[len(t) - e.target for t in e.texts] for e in start.train])
        self._lengths = (float(counts[:, 0].mean()), float(counts[:, 1].mean()))
        own = np.array([[len(t) - e.target for t in e.texts] for e in start.measured])
        sign = 1 if self._lengths[0] >= self._lengths[1] else -1
        gaps = sign * (own[:, 0] - own[:, 1])
        self._longer = float(((gaps > 0) + 0.5 * (gaps == 0)).mean())

    def loss(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        examples: Sequence[Example],
        hidden: torch.Tensor,
    ) -> torch.Tensor:
        chosen, rejected = self._logprobs(backbone, examples, hidden)
        reference = chosen.new_tensor([self._reference[_key(e)] for e in examples])
        gaps = (chosen - reference[:, 0]) - (rejected - reference[:, 1])
        return -torch.nn.functional.logsigmoid(self._beta * gaps).sum()

    def outputs(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        examples: Sequence[Example],
        hidden: torch.Tensor,
    ) -> list[Any]:
        chosen, rejected = (part.tolist() for part in self._logprobs(backbone, examples, hidden))
        return [
            _Output(
                chosen[number],
                rejected[number],
                hidden[2 * number, len(example.texts[0]) - 1].cpu().clone(),
                backbone.exact,
            )
            for number, example in enumerate(examples)
        ]

    def answers(
        self, rows: Sequence[Preference], examples: Sequence[Example], outputs: Sequence[Any]
    ) -> Mapping[str, PreferenceAnswers]:
        exact = all(output.exact for output in outputs)
        known = self._exact if exact else self._reference
        reference = np.array([known[_key(e)] for e in examples])
        found = np.array([(output.chosen, output.rejected) for output in outputs])
        rewards = self._beta * (found - reference)
        return {NAME: PreferenceAnswers(chosen=rewards[:, 0], rejected=rewards[:, 1])}

    def finish(self, backbone: Backbone, figures: Mapping[str, float]) -> Mapping[str, float]:
        now = self._sample(backbone)
        found = {
            "length_ratio": self._lengths[0] / self._lengths[1],
            "length_accuracy": self._longer,
            "answer_tokens_before": _mean_length(self._before),
            "answer_tokens": _mean_length(now),
            "repetition_before": repetition(self._before),
            "repetition": repetition(now),
        }
        self.warnings = tuple(_warnings(found, figures))
        return found

    def expected(self, example: Example, output: Any, specs: Mapping[str, HeadSpec]) -> list[float]:
        found: list[float] = output.last.tolist()
        return found

    def _logprobs(
        self, backbone: Backbone, examples: Sequence[Example], hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the chosen answers and of the rejected ones, `[examples]` each."""
        texts = [(text, example.target) for example in examples for text in example.texts]
        states = [hidden[i, prompt - 1 : len(text) - 1] for i, (text, prompt) in enumerate(texts)]
        gold = [token for text, prompt in texts for token in text.ids[prompt:]]
        losses = token_losses(backbone, torch.cat(states), torch.tensor(gold, device=hidden.device))
        parts = losses.split([len(text) - prompt for text, prompt in texts])
        sums = -torch.stack([part.sum() for part in parts])
        return sums[::2], sums[1::2]

    def _sample(self, backbone: Backbone) -> list[list[int]]:
        return [
            backbone.greedy(prompt, most=self._most, ends=self._ends) for prompt in self._prompts
        ]


def asked_of(task: AnyTask, row: Preference) -> dict[str, Any]:
    """A task's input for what is answered in a row.

    Raises:
        NotTrainable: it is a conversation, and the task's input has no list of turns.
    """
    if row.input is not None:
        return dict(row.input)
    return conversation(task, (*row.before, Turn("user", row.prompt)))


def repetition(texts: Sequence[Sequence[int]]) -> float:
    """The mean share of a text's runs of four tokens that occurred in it before."""
    shares = []
    for text in texts:
        grams = [tuple(text[at : at + _GRAM]) for at in range(len(text) - _GRAM + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return sum(shares) / len(shares)


def _mean_length(texts: Sequence[Sequence[int]]) -> float:
    return sum(map(len, texts)) / len(texts)


def _warnings(found: Mapping[str, float], figures: Mapping[str, float]) -> list[str]:
    words = []
    ratio = found["length_ratio"]
    if not 1 / LONGER <= ratio <= LONGER:
        words.append(f"chosen answers are {ratio:.2f} times as long as rejected ones")
    accuracy = figures["preference_accuracy"]
    if found["length_accuracy"] >= accuracy:
        words.append(
            f"going by length alone is right in {found['length_accuracy']:.1%}, and the model in "
            f"{accuracy:.1%}"
        )
    before, now = found["answer_tokens_before"], found["answer_tokens"]
    if now > GROWN * before:
        words.append(f"greedy answers have grown from {before:.1f} to {now:.1f} tokens")
    before, now = found["repetition_before"], found["repetition"]
    if now > before + REPEATED:
        words.append(
            f"greedy answers repeat themselves more: {now:.0%} of their runs of {_GRAM} tokens, "
            f"{before:.0%} before"
        )
    return words


def _by_key(
    examples: Sequence[Example], pairs: Sequence[Sequence[float]]
) -> dict[tuple[tuple[int, ...], ...], Pair]:
    return {_key(e): (pair[0], pair[1]) for e, pair in zip(examples, pairs, strict=True)}


def _key(example: Example) -> tuple[tuple[int, ...], ...]:
    return tuple(text.ids for text in example.texts)
