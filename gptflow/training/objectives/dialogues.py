"""Dialogues: `Generate`, trained on what the assistant says (supervised fine-tuning).

Every turn of the assistant is an answer to the prompt that the task makes of the turns before it.
The loss is over the answer's tokens and the token that ends it, never over what others said. Where
a longer prompt of the same dialogue begins with a shorter one and its answer, token by token, both
are learnt in one pass over the longer one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from pydantic import BaseModel

from gptflow.adapter import HeadSpec
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import EmptyData, NotTrainable
from gptflow.heads import Generate, Head
from gptflow.plugins import AnyTask
from gptflow.prompt import RenderedPrompt
from gptflow.training.backbone import Backbone
from gptflow.training.data.rows import Dialogue, Turn
from gptflow.training.evaluation.answers import Indices
from gptflow.training.example import Example, Text
from gptflow.training.heads import TrainedHeads
from gptflow.training.objectives.generating import GeneratingObjective
from gptflow.training.objectives.token_losses import token_losses
from gptflow.training.recording import TaskRecorder
from gptflow.training.settings import TrainingSettings

NAME = "answer"

_LISTS = ("messages", "turns")
_WORDS = ("content", "text")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextAnswers:
    """How likely a model finds what was said.

    Attributes:
        logprobs: `[dialogues]`, of all tokens of its answers together.
        tokens: `[dialogues]`, how many these are.
    """

    logprobs: np.ndarray[Any, np.dtype[np.float64]]
    tokens: np.ndarray[Any, np.dtype[np.float64]]
    primary: str = "mean_logprob"

    def __len__(self) -> int:
        return len(self.tokens)

    def metrics(self, indices: Indices | None = None) -> Mapping[str, float]:
        """The mean log-probability of a token, and the perplexity, of which less is better."""
        chosen = slice(None) if indices is None else indices
        mean = float(self.logprobs[chosen].sum() / self.tokens[chosen].sum())
        return {"mean_logprob": mean, "perplexity": math.exp(-mean)}


class _Output(NamedTuple):
    """An example's log-probability of what was said, and its last token's hidden state."""

    logprob: float
    last: list[float]


class DialogueObjective(GeneratingObjective[Dialogue]):
    """Learns to say what the assistant said."""

    primary = "mean_logprob"

    def __init__(
        self,
        recorder: TaskRecorder,
        vocabulary: Vocabulary,
        head: Head,
        settings: TrainingSettings,
    ) -> None:
        super().__init__(recorder, vocabulary)
        if not isinstance(head, Generate):
            raise NotTrainable(f"A {type(head).__name__} head is not trained on dialogues.")
        if vocabulary.end_id is None:
            raise NotTrainable("The model has no token that ends an answer.")
        self._end = vocabulary.end_id

    def prepare(self, train: Sequence[Dialogue]) -> None:
        conversation(self.recorder.task, train[0].turns)

    def examples(self, rows: Sequence[Dialogue]) -> list[Example]:
        asked = [
            (number, place)
            for number, row in enumerate(rows)
            for place, turn in enumerate(row.turns)
            if turn.role == "assistant" and place > 0
        ]
        if not asked:
            raise EmptyData("No turn of an assistant answers anything.")
        task = self.recorder.task
        requests = self.recorder.record(
            [conversation(task, rows[number].turns[:place]) for number, place in asked],
            [rows[number] for number, _ in asked],
        )
        made: list[Example] = []
        for (number, place), request in zip(asked, requests, strict=True):
            assert isinstance(request.prompt, RenderedPrompt)
            prompt = self.vocabulary.encode(request.prompt)
            said = rows[number].turns[place].text
            answer = (*answer_ids(self.vocabulary, request.prompt, said), self._end)
            learnt = set(range(len(prompt) - 1, len(prompt) + len(answer) - 1))
            if made and made[-1].row == number:
                before = made[-1].texts[0].ids
                if prompt[: len(before)] == before:
                    learnt |= set(made.pop().target)
            target = tuple(sorted(learnt))
            made.append(Example((Text(prompt + answer),), target, float(len(target)), number))
        return made

    def loss(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        examples: Sequence[Example],
        hidden: torch.Tensor,
    ) -> torch.Tensor:
        states, gold = _read(examples, hidden)
        return token_losses(backbone, states, gold).sum()

    def outputs(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        examples: Sequence[Example],
        hidden: torch.Tensor,
    ) -> list[Any]:
        return [
            _Output(
                -float(self.loss(backbone, heads, [example], hidden[number : number + 1])),
                hidden[number, len(example.texts[0]) - 1].float().cpu().tolist(),
            )
            for number, example in enumerate(examples)
        ]

    def answers(
        self, rows: Sequence[Dialogue], examples: Sequence[Example], outputs: Sequence[Any]
    ) -> Mapping[str, TextAnswers]:
        logprobs, tokens = np.zeros(len(rows)), np.zeros(len(rows))
        for example, output in zip(examples, outputs, strict=True):
            logprobs[example.row] += output.logprob
            tokens[example.row] += example.weight
        said = tokens > 0
        return {NAME: TextAnswers(logprobs=logprobs[said], tokens=tokens[said])}

    def expected(self, example: Example, output: Any, specs: Mapping[str, HeadSpec]) -> list[float]:
        found: list[float] = output.last
        return found


def answer_ids(vocabulary: Vocabulary, prompt: RenderedPrompt, text: str) -> tuple[int, ...]:
    """The tokens that the engine would have to decode for this answer to a prompt."""
    if prompt.is_chat and vocabulary.chat.end is not None:
        return tuple(vocabulary.encode_text(text))
    end = "".join(segment.text for segment in vocabulary.segments(prompt)[-2:])
    return vocabulary.encode_continuation(text, after=end)


def conversation(task: AnyTask, turns: Sequence[Turn]) -> dict[str, Any]:
    """A task's input for turns that end with what is to be answered.

    Raises:
        NotTrainable: the input has no list of turns.
    """
    for name in _LISTS:
        field = task.input_type.model_fields.get(name)
        if field is None:
            continue
        for each in get_args(field.annotation):
            if isinstance(each, type) and issubclass(each, BaseModel):
                words = next((word for word in _WORDS if word in each.model_fields), None)
                if words is not None and "role" in each.model_fields:
                    return {name: [{"role": t.role, words: t.text} for t in turns]}
    if len(turns) == 1:
        return dict(task.input_type.from_text(turns[0].text))
    raise NotTrainable(
        f"The input of task {task.name!r} has no list of turns for a dialogue's.",
        hint="Give it a field `messages` or `turns` of items with `role` and `content`.",
    )


def _read(examples: Sequence[Example], hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states that answers' tokens are predicted from, and these tokens."""
    states = [hidden[i, list(example.target)] for i, example in enumerate(examples)]
    gold = [example.texts[0].ids[place + 1] for example in examples for place in example.target]
    return torch.cat(states), torch.tensor(gold, device=hidden.device)
