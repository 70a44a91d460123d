"""After replay the head is fitted again, so that new labels do not crowd out old ones."""

from __future__ import annotations

import torch
from torch import nn

from gptflow.training.rebalancing import fit_balanced


def test_labels_with_few_rows_count_as_much_as_those_with_many() -> None:
    torch.manual_seed(0)
    counts = torch.tensor([4, 4, 200])
    gold = torch.arange(3).repeat_interleave(counts)
    centres = torch.eye(3, 8)
    vectors = centres[gold] + 0.5 * torch.randn(len(gold), 8)
    head = nn.Linear(8, 4)
    nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([0.0, 0.0, 3.0, 0.0]))  # it leans to what came last
    tests = torch.arange(3).repeat_interleave(100)
    asked = centres[tests] + 0.5 * torch.randn(300, 8)
    assert (head(asked).argmax(1) == tests).float().mean() < 0.4
    fit_balanced(head, vectors, gold)
    found = head(asked).argmax(1)
    assert (found == tests).float().mean() > 0.8
    assert 60 < int((found == 2).sum()) < 140
    assert not (found == 3).any()  # a label without rows
