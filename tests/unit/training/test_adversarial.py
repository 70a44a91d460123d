"""Shifts of the tokens' states: they raise the loss, stay in the ball, leave the model alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gptflow.adapter_info import HEAD_WEIGHTS, LORA_WEIGHTS
from gptflow.errors import ConfigError
from gptflow.training.adversarial import Adversary, Method
from gptflow.training.backbone import Backbone
from gptflow.training.data.source import Source
from gptflow.training.heads import TrainedHeads, pool
from gptflow.training.parts import data_file
from gptflow.training.settings import TrainingSettings
from gptflow.training.sitting import Watch
from gptflow.training.training import begin, train

TEXTS = [(5, 6, 7, 8), (9, 10), (11, 12, 13)]
GOLD = torch.tensor([0, 1, 2])
METHODS: tuple[Method, ...] = ("fgm", "pgd", "freelb")
EPSILON = 0.5


@dataclasses.dataclass
class Problem:
    """A loss of a tiny model, which writes down the shifts that it is asked at."""

    backbone: Backbone
    heads: TrainedHeads
    lower: list[torch.Tensor] | None
    shifts: list[torch.Tensor | None] = dataclasses.field(default_factory=list)

    def loss(self, shift: torch.Tensor | None = None) -> torch.Tensor:
        self.shifts.append(None if shift is None else shift.detach().clone())
        hidden = self.backbone.hidden(TEXTS, self.lower, shift)
        pooled = pool(hidden, [len(text) for text in TEXTS], "last")
        return torch.nn.functional.cross_entropy(self.heads["label"](pooled), GOLD)

    def value(self, shift: torch.Tensor | None = None) -> float:
        return float(self.loss(shift).detach())

    @property
    def states(self) -> torch.Tensor:
        return self.backbone.entering(TEXTS, self.lower)

    def gradients(self) -> dict[str, torch.Tensor]:
        named = {**self.backbone.parameters, **self.heads.trained}
        return {name: p.grad.clone() for name, p in named.items() if p.grad is not None}

    def zero(self) -> None:
        for parameter in (*self.backbone.parameters.values(), *self.heads.parameters()):
            parameter.grad = None


@pytest.fixture
def make(tiny: SimpleNamespace) -> Callable[..., Problem]:
    def problem(kind: str = "llama", **settings: Any) -> Problem:
        chosen = TrainingSettings.of(rank=4, dropout=0.0, device="cpu", **settings)
        backbone = Backbone.load(tiny.model(kind).path, chosen, model_id="tiny")
        heads = TrainedHeads({"label": 3}, backbone.width)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in (*heads.parameters(), *backbone.parameters.values()):
                if chosen.method != "full":
                    parameter.add_(0.05 * torch.randn_like(parameter))
            torch.nn.init.normal_(heads["label"].weight)
        lower = backbone.lower(TEXTS) if backbone.first else None
        return Problem(backbone, heads, lower)

    return problem


def attack(problem: Problem, method: Method, epsilon: float = EPSILON, steps: int = 4) -> float:
    problem.zero()
    problem.shifts.clear()
    adversary = Adversary(method, epsilon=epsilon, steps=steps)
    return adversary.backward(problem.loss, problem.states, [len(text) for text in TEXTS])


@pytest.mark.parametrize("settings", [{}, {"layers": "upper"}, {"method": "head"}])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_a_shift_raises_the_loss_inside_the_ball(
    make: Callable[..., Problem], method: Method, kind: str, settings: dict[str, Any]
) -> None:
    problem = make(kind, **settings)
    clean = problem.value()
    attack(problem, method)
    last = problem.shifts[-1]
    assert last is not None
    assert problem.value(last) > clean
    states = problem.states
    for shift in problem.shifts:
        assert shift is not None
        for number, text in enumerate(TEXTS):
            mean = states[number, : len(text)].square().sum(-1).mean().sqrt()
            assert shift[number].norm() <= EPSILON * mean * 1.0001
            assert not shift[number, len(text) :].any()  # padding is no text


def test_a_step_reaches_the_border_and_several_go_further_than_one(
    make: Callable[..., Problem],
) -> None:
    problem = make()
    attack(problem, "fgm")
    one = problem.shifts[-1]
    assert one is not None
    mean = problem.states[0].square().sum(-1).mean().sqrt()
    assert float(one[0].norm()) == pytest.approx(EPSILON * float(mean), rel=1e-4)
    attack(problem, "pgd", steps=8)
    several = problem.shifts[-1]
    assert problem.value(several) >= problem.value(one) * 0.999


@pytest.mark.parametrize("method", METHODS)
def test_the_gradients_are_those_of_the_shifts_that_were_looked_at(
    make: Callable[..., Problem], method: Method
) -> None:
    problem = make()
    returned = attack(problem, method)
    found, shifts = problem.gradients(), list(problem.shifts)
    problem.zero()
    if method == "freelb":
        assert len(shifts) == 4
        total = torch.stack([problem.loss(shift) for shift in shifts]).mean()
        assert returned == pytest.approx(problem.value(shifts[0]))
    else:
        assert shifts[0] is not None
        assert not shifts[0].any()
        total = problem.loss() + problem.loss(shifts[-1])
        assert returned == pytest.approx(problem.value())
    total.backward()
    expected = problem.gradients()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5), name


@pytest.mark.parametrize("settings", [{}, {"method": "full"}])
def test_the_embeddings_are_as_they_were(
    make: Callable[..., Problem], settings: dict[str, Any]
) -> None:
    problem = make(**settings)
    embeddings = problem.backbone.model.get_input_embeddings()
    before, hooks = embeddings.weight.detach().clone(), len(embeddings._forward_hooks)
    clean = problem.value()
    for method in METHODS:
        attack(problem, method)
    assert torch.equal(embeddings.weight, before)
    assert len(embeddings._forward_hooks) == hooks
    assert problem.value() == clean


def test_a_head_of_zeros_has_no_direction_and_no_nan(make: Callable[..., Problem]) -> None:
    problem = make()
    torch.nn.init.zeros_(problem.heads["label"].weight)
    for method in METHODS:
        attack(problem, method)
        assert all(gradient.isfinite().all() for gradient in problem.gradients().values())


@pytest.mark.parametrize("layers", ["all", "upper"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_learns_with_it_and_resumes_exactly(
    tiny: SimpleNamespace, tmp_path: Path, method: Method, layers: str
) -> None:
    task = tiny.Topic()
    task.check()
    path = tiny.jsonl(tmp_path / "rows.jsonl", tiny.topic_rows(6))
    settings = TrainingSettings.of(
        rank=4, batch=16, learning_rate=3e-3, head_learning_rate=1e-2, epochs=4, layers=layers,
        adversarial=method, epsilon=0.1, dropout=0.2, batch_tokens=256,
    )  # fmt: skip
    files = [data_file(path, "train", "labels", Source())]

    def stop(update: Any) -> None:
        if update.step == 4:
            raise KeyboardInterrupt

    made = []
    for stopping in (False, True):
        run = begin(tiny.table, task, tiny.model(), files, settings)
        if stopping:
            with pytest.raises(KeyboardInterrupt):
                train(run, task, tiny.model(), tiny.store, context=256, watch=Watch(update=stop))
        record = train(run, task, tiny.model(), tiny.store, context=256)
        losses = [each["loss"] for each in run.log()]
        assert min(losses[-3:]) < losses[0]
        made.append(tiny.store.find(record.version))
    for name in (LORA_WEIGHTS, HEAD_WEIGHTS):
        assert made[0].manifest.files[name] == made[1].manifest.files[name]
    plain = begin(
        tiny.table, task, tiny.model(), files,
        settings.model_copy(update={"adversarial": None, "epsilon": None}),
    )  # fmt: skip
    record = train(plain, task, tiny.model(), tiny.store, context=256)
    other = tiny.store.find(record.version)
    assert not torch.equal(
        load_file(other.folder / HEAD_WEIGHTS)["label.weight"],
        load_file(made[0].folder / HEAD_WEIGHTS)["label.weight"],
    )
    details = json.loads((made[0].folder / "metrics.json").read_text())
    assert details["settings"]["adversarial"] == method


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"epsilon": 1.0}, "epsilon goes with adversarial"),
        ({"adversarial_steps": 3}, "adversarial_steps go with"),
        ({"adversarial": "fgm", "adversarial_steps": 3}, "adversarial_steps go with"),
        ({"adversarial": "pgd", "epsilon": 0}, "epsilon"),
        ({"adversarial": "pgd", "adversarial_steps": 1}, "adversarial_steps"),
        ({"adversarial": "gan"}, "adversarial"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        TrainingSettings.of(**given)
