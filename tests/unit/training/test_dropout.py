"""Dropout by bytes."""

from __future__ import annotations

import torch

from gptflow.training.dropout import ByteDropout


def test_as_many_elements_become_zero_as_asked_and_the_rest_keeps_the_mean() -> None:
    torch.manual_seed(0)
    found = ByteDropout(0.25)(torch.ones(7, 33_333))
    assert abs(float((found == 0).float().mean()) - 0.25) < 0.01
    assert abs(float(found.mean()) - 1) < 0.01
    assert set(found.unique().tolist()) == {0.0, torch.tensor(4 / 3).item()}


def test_the_seed_repeats_what_is_drawn_and_no_call_repeats_another() -> None:
    dropout = ByteDropout(0.5)
    torch.manual_seed(3)
    first, second = dropout(torch.ones(1000)), dropout(torch.ones(1000))
    torch.manual_seed(3)
    assert torch.equal(dropout(torch.ones(1000)), first)
    assert not torch.equal(first, second)


def test_gradients_pass_where_elements_were_kept_only() -> None:
    torch.manual_seed(0)
    states = torch.ones(64, requires_grad=True)
    found = ByteDropout(0.5)(states)
    found.sum().backward()
    assert states.grad is not None
    assert torch.equal(states.grad, found.detach())


def test_nothing_is_left_out_while_not_training() -> None:
    states = torch.randn(5, 5)
    assert ByteDropout(0.5).eval()(states) is states
    assert ByteDropout(0.0)(states) is states
