"""The built-in tasks: what one can ask of a language model without writing a plugin."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from pydantic import Field, field_validator

from gptflow.heads import (
    Choose,
    Chosen,
    Embed,
    Embedded,
    Generate,
    Generated,
    Json,
    Parsed,
    Score,
    Scored,
    Tag,
    Tagged,
)
from gptflow.hookspecs import hookimpl
from gptflow.prompt import Prompt
from gptflow.task import Context, Input, Output, Task, Text


class Sampling(Input):
    """How text is drawn; see `gptflow.heads.Generate`."""

    max_tokens: int = Field(128, ge=1, le=4096)
    temperature: float = Field(0.0, ge=0, le=5)
    top_k: int = Field(0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, ge=0.1, le=10)
    n: int = Field(1, ge=1, le=64)
    stop: tuple[str, ...] = Field((), max_length=16)
    logprobs: bool = Field(False, description="tell how likely the model found each token")

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if not all(stop):
            raise ValueError("a stop string is empty")
        return stop

    def generate(self) -> Generate:
        return Generate(**{name: getattr(self, name) for name in Sampling.model_fields})


class Texts(Output):
    """Generated text; `texts` holds all `n` continuations.

    Attributes:
        logprobs: for each of `texts`, its tokens' log-probabilities; only if asked for.
    """

    text: str
    texts: list[str]
    finish: Literal["stop", "length"]
    logprobs: list[list[float]] | None = Field(None, exclude_if=lambda value: value is None)


def _texts(input: Sampling, raw: Generated) -> Texts:
    texts = [continuation.text for continuation in raw.continuations]
    return Texts(
        text=texts[0],
        texts=texts,
        finish=raw.continuations[0].finish,
        logprobs=[list(c.logprobs) for c in raw.continuations] if input.logprobs else None,
    )


class GenerateInput(Sampling):
    text: Text


class GenerateText(Task[GenerateInput, Generated, Texts]):
    """Continue a text."""

    name = "text.generate"
    prompt = Prompt("{{ text }}", truncate="text", keep="end")

    def head_for(self, input: GenerateInput) -> Generate:
        return input.generate()

    def postprocess(self, input: GenerateInput, raw: Generated) -> Texts:
        return _texts(input, raw)


class Turn(Input):
    role: Literal["system", "user", "assistant"]
    content: Text


class ChatInput(Sampling):
    messages: tuple[Turn, ...] = Field(min_length=1)

    @classmethod
    def from_text(cls, text: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": text}]}


class Chat(Task[ChatInput, Generated, Texts]):
    """Answer the last turn of a conversation."""

    name = "text.chat"
    prompt = Prompt(
        "{% for turn in messages %}\n"
        "{% if turn.role == 'system' %}\nsystem:\n"
        "{% elif turn.role == 'user' %}\nuser:\n"
        "{% else %}\nassistant:\n{% endif %}\n"
        "{{ turn.content }}\n"
        "{% endfor %}\n"
        "assistant:\n"
    )

    def head_for(self, input: ChatInput) -> Generate:
        return input.generate()

    def postprocess(self, input: ChatInput, raw: Generated) -> Texts:
        return _texts(input, raw)


class JsonInput(Input):
    text: Text
    json_schema: dict[str, Any] = Field(description="JSON Schema of the answer")
    instruction: str = "Extract the requested information from the text as JSON."
    max_tokens: int = Field(256, ge=1, le=4096)


class JsonOutput(Output):
    value: Any


class ExtractJson(Task[JsonInput, Parsed, JsonOutput]):
    """Answer with a JSON value that fits a given schema."""

    name = "text.json"
    prompt = Prompt(
        "user:\n{{ instruction }}\n\nText: {{ text }}\n\nSchema: {{ json_schema | tojson }}\n"
        "assistant:\n",
        truncate="text",
    )

    def head_for(self, input: JsonInput) -> Json:
        return Json(schema=input.json_schema, max_tokens=input.max_tokens)

    def postprocess(self, input: JsonInput, raw: Parsed) -> JsonOutput:
        return JsonOutput(value=raw.value)


class Labels(Input):
    labels: tuple[Text, ...] = Field(min_length=2, max_length=256)

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels):
            raise ValueError("a label occurs twice")
        return labels


class ClassifyInput(Labels):
    text: Text
    question: str = "Which label fits the text best?"


class ClassifyOutput(Output):
    label: str
    probs: dict[str, float]
    calibrated: bool


class ClassifyText(Task[ClassifyInput, Chosen, ClassifyOutput]):
    """Choose one of the given labels for a text."""

    name = "text.classify"
    prompt = Prompt(
        "{{ question }}\nLabels: {{ labels | join(', ') }}\n\nText: {{ text }}\nLabel:",
        truncate="text",
    )

    def head_for(self, input: ClassifyInput) -> Choose:
        return Choose(labels=input.labels, blank=("text",))

    def postprocess(self, input: ClassifyInput, raw: Chosen) -> ClassifyOutput:
        return ClassifyOutput(label=raw.label, probs=dict(raw.probs), calibrated=raw.calibrated)


class TagInput(Labels):
    text: Text


class SpanOutput(Output):
    text: str
    label: str
    start: int
    end: int


class TagOutput(Output):
    spans: list[SpanOutput]


class TagText(Task[TagInput, Tagged, TagOutput]):
    """Find the spans of a text that carry one of the given labels."""

    name = "text.tag"
    prompt = Prompt(
        "user:\nList every span of the text that is one of: {{ labels | join(', ') }}.\n"
        'Copy each span exactly. Answer as JSON: [{"text": ..., "label": ...}]\n\n'
        "Text: {{ text }}\nassistant:\n",
        truncate="text",
    )

    def head_for(self, input: TagInput) -> Tag:
        return Tag(labels=input.labels)

    def postprocess(self, input: TagInput, raw: Tagged) -> TagOutput:
        return TagOutput(
            spans=[
                SpanOutput(text=span.text, label=span.label, start=span.start, end=span.end)
                for span in raw.spans
            ]
        )


class ScoreInput(Input):
    text: Text = Field(description="what the items are judged by, such as a query")
    items: tuple[Text, ...] = Field(min_length=1, max_length=1000)
    question: str = "Does the item fit the text?"


class ScoreOutput(Output):
    scores: list[float]


class ScoreText(Task[ScoreInput, Scored, ScoreOutput]):
    """Score each item of a list against a text: log P(Yes) - log P(No)."""

    name = "text.score"
    prompt = Prompt(
        "Text: {{ text }}\nQuestion: {{ question }}\nItem: {{ item }}\nAnswer Yes or No.\nAnswer:",
        truncate="text",
    )
    head = Score(each="items")

    def postprocess(self, input: ScoreInput, raw: Scored) -> ScoreOutput:
        return ScoreOutput(scores=list(raw.values))


class EmbedInput(Input):
    text: Text
    pooling: Literal["mean", "last"] = "mean"
    normalize: bool = True


class EmbedOutput(Output):
    vector: list[float]


class EmbedText(Task[EmbedInput, Embedded, EmbedOutput]):
    """Turn a text into a vector."""

    name = "text.embed"
    prompt = Prompt("{{ text }}", truncate="text")

    def head_for(self, input: EmbedInput) -> Embed:
        return Embed(pooling=input.pooling, normalize=input.normalize)

    def postprocess(self, input: EmbedInput, raw: Embedded) -> EmbedOutput:
        return EmbedOutput(vector=list(raw.vector))


class SummarizeInput(Input):
    text: Text
    max_tokens: int = Field(96, ge=8, le=1024)


class TextOutput(Output):
    text: str


class Summarize(Task[SummarizeInput, Generated, TextOutput]):
    """Summarise a text in a few sentences."""

    name = "text.summarize"
    prompt = Prompt(
        "user:\nSummarize the following text in one or two sentences.\n\n{{ text }}\nassistant:\n",
        truncate="text",
    )

    def head_for(self, input: SummarizeInput) -> Generate:
        return Generate(max_tokens=input.max_tokens)

    def postprocess(self, input: SummarizeInput, raw: Generated) -> TextOutput:
        return TextOutput(text=raw.text.strip())


class TranslateInput(Input):
    text: Text
    to: Text = Field(description="the target language, in English: 'French'")
    max_tokens: int = Field(256, ge=8, le=2048)


class Translate(Task[TranslateInput, Generated, TextOutput]):
    """Translate a text into a given language."""

    name = "text.translate"
    prompt = Prompt(
        "user:\nTranslate the text into {{ to }}. Answer with the translation only.\n\n"
        "{{ text }}\nassistant:\n"
    )

    def head_for(self, input: TranslateInput) -> Generate:
        return Generate(max_tokens=input.max_tokens)

    def postprocess(self, input: TranslateInput, raw: Generated) -> TextOutput:
        return TextOutput(text=raw.text.strip())


class AnswerInput(Input):
    question: Text
    context: str = ""
    max_tokens: int = Field(128, ge=1, le=1024)


class Variables(TypedDict):
    passage: str


class Answer(Task[AnswerInput, Generated, TextOutput]):
    """Answer a question, from a given text where there is one."""

    name = "text.answer"
    prompt = Prompt(
        "user:\n"
        "{% if passage %}\nAnswer the question from the text only.\n\nText: {{ passage }}\n\n"
        "{% endif %}\n"
        "Question: {{ question }}\nassistant:\n",
        truncate="passage",
    )

    def prepare(self, input: AnswerInput) -> Variables:
        return {"passage": input.context.strip()}

    def head_for(self, input: AnswerInput) -> Generate:
        return Generate(max_tokens=input.max_tokens)

    def postprocess(self, input: AnswerInput, raw: Generated) -> TextOutput:
        return TextOutput(text=raw.text.strip())


class EchoInput(Input):
    text: Text


class Echo(Task[EchoInput, Any, TextOutput]):
    """Give the text back without asking the model: to try a queue, and to measure it."""

    name = "text.echo"

    async def run(self, input: EchoInput, ctx: Context) -> TextOutput:
        return TextOutput(text=input.text)


@hookimpl
def register_tasks(register: Any) -> None:
    for task in (
        GenerateText,
        Chat,
        ExtractJson,
        ClassifyText,
        TagText,
        ScoreText,
        EmbedText,
        Summarize,
        Translate,
        Answer,
        Echo,
    ):
        register(task())
