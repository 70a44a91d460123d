"""Adversarial training: small shifts of what enters the trained layers that raise the loss most.

With all layers trained, that is the embeddings of the tokens. With the upper half trained, it is
what the frozen lower half gives: that is computed once, so a shift of the embeddings would never
get through it.

| method | the gradient that a step takes | |
|---|---|---|
| `fgm` | of the loss, and of the loss at one shift along its gradient | Miyato et al. 2017 |
| `pgd` | of the loss, and of the loss at the end of several such shifts | Madry et al. 2018 |
| `freelb` | the mean over a walk of several shifts, from a random one | Zhu et al. 2020 |

The papers: "Adversarial Training Methods for Semi-Supervised Text Classification" (2017), "Towards
Deep Learning Models Resistant to Adversarial Attacks" (2018), "FreeLB: Enhanced Adversarial
Training for Natural Language Understanding" (2020). As is usual for texts, `pgd` begins at rest.

A shift is bounded per text in its Euclidean length, counted in lengths of the text's mean token: a
bound in absolute numbers would mean another thing for every model and layer, which is why Miyato et
al. normalise the embeddings first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

Method = Literal["fgm", "pgd", "freelb"]

Loss = Callable[[torch.Tensor | None], torch.Tensor]
"""The loss at a shift of `[texts, longest, width]`, or at none. Parameters' gradients flow."""

EPSILON = 1.0
"""Of `Adversary`, where the settings do not say."""

STEPS = 3
"""Of `Adversary`, where the settings do not say."""

_REACH = 2.5
"""Steps together may go this many radii, so that they reach the border and can move along it."""


class Adversary:
    """Takes the gradients of a pass, at shifts that its loss is highest at.

    Args:
        epsilon: the longest shift of a text, in lengths of its mean token.
        steps: shifts that are looked at one after the other; 1 for `fgm`.
    """

    def __init__(self, method: Method, *, epsilon: float, steps: int) -> None:
        self._method = method
        self._epsilon = epsilon
        self._steps = 1 if method == "fgm" else steps

    def backward(self, loss: Loss, states: torch.Tensor, lengths: Sequence[int]) -> float:
        """Add a pass's gradients to the parameters'. The states themselves are left as they are.

        Every forward pass of it drops the same numbers out.

        Args:
            states: `[texts, longest, width]`, what enters the trained layers.
            lengths: tokens of each text.

        Returns:
            The loss without a shift; for `freelb`, which never looks there, with the first one.
        """
        seed = int(torch.randint(2**62, (1,)))
        inside = torch.arange(states.shape[1], device=states.device) < torch.tensor(
            lengths, device=states.device
        ).unsqueeze(1)
        radius = self._radius(states, inside)
        if self._method == "freelb":
            return self._freelb(loss, states, inside, radius, seed)
        shift = torch.zeros_like(states).requires_grad_()
        clean = _at(loss, shift, seed)
        clean.backward()
        assert shift.grad is not None
        shift = self._moved(shift, shift.grad, radius)
        for _ in range(self._steps - 1):
            [gradient] = torch.autograd.grad(_at(loss, shift, seed), shift)
            shift = self._moved(shift, gradient, radius)
        _at(loss, shift.detach(), seed).backward()
        return float(clean.detach())

    def _freelb(
        self,
        loss: Loss,
        states: torch.Tensor,
        inside: torch.Tensor,
        radius: torch.Tensor,
        seed: int,
    ) -> float:
        torch.manual_seed(seed)
        drawn = torch.rand_like(states).mul_(2).sub_(1) * inside[..., None]
        sizes = (inside.sum(1) * states.shape[2]).sqrt()[:, None, None]
        shift = (drawn * radius / sizes).requires_grad_()
        first = 0.0
        for step in range(self._steps):
            found = _at(loss, shift, seed)
            (found / self._steps).backward()
            if step == 0:
                first = float(found.detach())
            assert shift.grad is not None
            shift = self._moved(shift, shift.grad, radius)
        return first

    def _radius(self, states: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """`[texts, 1, 1]`: epsilon times the root mean square of the lengths of a text's tokens."""
        squares = states.detach().float().square().sum(-1) * inside
        mean: torch.Tensor = (squares.sum(1) / inside.sum(1)).sqrt()
        return self._epsilon * mean[:, None, None]

    def _moved(
        self, shift: torch.Tensor, gradient: torch.Tensor, radius: torch.Tensor
    ) -> torch.Tensor:
        """One step up the loss, then back into the ball."""
        step = 1.0 if self._steps == 1 else _REACH / self._steps
        moved = shift.detach() + step * radius * gradient / _length(gradient)
        return (moved * (radius / _length(moved)).clamp(max=1)).requires_grad_()


def _at(loss: Loss, shift: torch.Tensor, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return loss(shift)


def _length(shifts: torch.Tensor) -> torch.Tensor:
    """`[texts, 1, 1]`, never quite nothing: at first a head is zero, and so is the gradient."""
    lengths: torch.Tensor = torch.linalg.vector_norm(shifts, dim=(1, 2), keepdim=True)
    return lengths.clamp(min=torch.finfo(shifts.dtype).tiny)
