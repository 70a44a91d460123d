"""A tiny random model in a folder, tasks for it, and rows that it can learn from."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gptflow import (
    Chosen,
    Classify,
    Generate,
    Input,
    MultiHead,
    Output,
    Prompt,
    Score,
    Tag,
    Tagged,
    Task,
)
from gptflow.cli import main, session
from gptflow.models import Model, ModelStore
from gptflow.models.adapter_store import AdapterStore
from gptflow.plugins import Registry
from gptflow.testing import registry_of
from gptflow.training.runs import RunTable

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOPICS = (
    "card", "cash", "refund", "fee", "limit", "loan", "rate", "alarm", "music", "weather", "taxi",
    "recipe", "flight", "hotel", "song",
)  # fmt: skip
PLACES = ("Paris", "Oslo", "Rome", "Lima", "Bonn", "Kiev")
NAMES = ("Ada", "Bob", "Eve", "Max", "Zoe", "Tim")
CORPUS = [
    "Is it good or bad? The text says that my card was lost, please help me with the refund fee.",
    " ".join((*TOPICS, *PLACES, *NAMES, "user assistant system Text Answer Topic lives works in")),
] * 8


@functools.cache
def tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def write_model(folder: Path, kind: str = "llama") -> Path:
    """A model folder as the store takes it, with random weights."""
    shape: dict[str, Any] = {
        "vocab_size": Tokenizer.from_str(tokenizer_json()).get_vocab_size(),
        "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4,
        # Heads too narrow for the compiled kernels, which need building.
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 256, "eos_token_id": 0, "bos_token_id": 0,
    }  # fmt: skip
    match kind:
        case "llama":
            config: Any = transformers.LlamaConfig(**shape)
        case "qwen3":
            config = transformers.Qwen3Config(**shape)
        case "gpt2":
            config = transformers.GPT2Config(
                vocab_size=shape["vocab_size"], n_positions=256, n_embd=48, n_layer=4, n_head=6,
                eos_token_id=0, bos_token_id=0,
            )  # fmt: skip
        case _:
            raise AssertionError(kind)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(3)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x"}))
    return folder


class Post(Input):
    text: str


class Label(Output):
    label: str


class Topic(Task[Post, Chosen, Label]):
    """The topic of a request."""

    name = "tiny.topic"
    prompt = Prompt("Text: {{ text }}\nTopic:", truncate="text")
    head = Classify(labels=TOPICS, adapter="topic")

    def postprocess(self, input: Post, raw: Chosen) -> Label:
        return Label(label=raw.label)


class Both(Task[Post, Any, Label]):
    """Topic and mood."""

    name = "tiny.both"
    prompt = Prompt("Text: {{ text }}\nAnswer:")
    head = MultiHead(
        heads={"topic": Classify(labels=TOPICS[:3]), "mood": Classify(labels=("good", "bad"))},
        adapter="both",
    )


class Found(Output):
    spans: list[dict[str, Any]]


class Names(Task[Post, Tagged, Found]):
    """Names and places."""

    name = "tiny.names"
    prompt = Prompt("Text: {{ text }}\nText: {{ text }}")
    head = Tag(labels=("name", "place"), adapter="names")

    def postprocess(self, input: Post, raw: Tagged) -> Found:
        return Found(spans=[dataclasses.asdict(span) for span in raw.spans])


class Query(Input):
    text: str
    items: tuple[str, ...]


class Fit(Task[Query, Any, Label]):
    """How well items fit."""

    name = "tiny.fit"
    prompt = Prompt("Text: {{ text }}\nAnswer: {{ item }}")
    head = Score(each="items", adapter="fit")


class Said(Input):
    role: str
    content: str


class Talk(Input):
    messages: tuple[Said, ...]


class Reply(Task[Talk, Any, Label]):
    """Answer a conversation."""

    name = "tiny.reply"
    prompt = Prompt(
        "{% for turn in messages %}\n{% if turn.role == 'user' %}\nuser:\n{% else %}\nassistant:\n"
        "{% endif %}\n{{ turn.content }}\n{% endfor %}\nassistant:\n"
    )
    head = Generate(max_tokens=16, adapter="reply")


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def topic_rows(each: int = 30) -> list[dict[str, Any]]:
    ways = ("my {} is bad {}", "help me with the {} please {}", "{} {}", "is the {} good {}?")
    return [
        {"text": ways[n % len(ways)].format(topic, f"number {n}"), "label": topic}
        for topic in TOPICS
        for n in range(each)
    ]


def tag_rows() -> list[dict[str, Any]]:
    rows = []
    for n, name in enumerate(NAMES):
        for m, place in enumerate(PLACES):
            text = f"{name} lives in {place}" if (n + m) % 2 else f"in {place} works {name}"
            spans = [
                [text.index(word), text.index(word) + len(word), label]
                for word, label in ((name, "name"), (place, "place"))
            ]
            rows.append({"text": text, "spans": spans})
    return rows


def score_rows() -> list[dict[str, Any]]:
    return [
        {"query": f"{place} {n}", "candidate": f"{word} it is", "score": score}
        for place in PLACES
        for n in range(5)
        for word, score in (("good", 1), ("bad", 0), ("the fee", 0))
    ]


def dialogue_rows() -> list[dict[str, Any]]:
    return [
        {
            "turns": [
                {"role": "user", "content": f"my {topic} {n}"},
                {"role": "assistant", "content": f"refund the {topic}"},
                {"role": "user", "content": "is it good?"},
                {"role": "assistant", "content": "it is good"},
            ]
        }
        for topic in TOPICS[:6]
        for n in range(4)
    ]


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("models")

    @functools.cache
    def get(kind: str) -> Path:
        return write_model(root / f"tiny-{kind}", kind)

    return get


@pytest.fixture
def tiny(model_folders: Callable[[str], Path], tmp_path: Path) -> Iterator[SimpleNamespace]:
    """The helpers above; test modules cannot import a conftest."""

    def model(kind: str = "llama") -> Model:
        return ModelStore(tmp_path / "cache").find(str(model_folders(kind)))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that the same steps give the same sums
    yield SimpleNamespace(
        model=model,
        store=AdapterStore(tmp_path / "adapters"),
        table=RunTable(tmp_path / "runs"),
        Topic=Topic, Both=Both, Names=Names, Fit=Fit, Reply=Reply,
        jsonl=jsonl, topic_rows=topic_rows, tag_rows=tag_rows, score_rows=score_rows,
        dialogue_rows=dialogue_rows, TOPICS=TOPICS,
    )  # fmt: skip
    torch.set_num_threads(threads)


@pytest.fixture
def gptflow(
    tiny: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """`gptflow("runs", "list")` in an empty folder, with the tiny model and its tasks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTFLOW_MODEL", str(tiny.model().path))
    monkeypatch.setenv("GPTFLOW_DATA_DIR", str(tmp_path / "data"))
    registry = registry_of(tiny.Topic(), tiny.Names(), tiny.Both(), tiny.Fit(), tiny.Reply())
    monkeypatch.setattr(Registry, "load", lambda only=None: registry)
    session._load_registry.cache_clear()

    def invoke(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(args)
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    yield invoke
    session._load_registry.cache_clear()
