"""How good pseudo-labels are, by hand."""

from __future__ import annotations

import torch

from fastssl.methods.bricks.quality import pseudo_label_quality


def test_rows_without_a_pseudo_label_are_not_judged():
    label = torch.tensor([0, 1, -1, 2, -1, 1])
    hidden = torch.tensor([0, 0, 0, 2, -1, -1])
    weight = torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0, 1.0])
    found = pseudo_label_quality(label, weight, hidden, 3)
    assert found["kept"] == 0.5
    assert [tuple(map(float, found[name])) for name in ("pseudo_accuracy", "pseudo_accuracy_all", "pseudo_bias")] == [
        (1, 2),
        (2, 3),
        (1, 3),
    ]


def test_none_at_all():
    found = pseudo_label_quality(torch.full((4,), -1), torch.zeros(4), torch.arange(4), 4)
    assert found["kept"] == 0 and all(float(found[name][1]) == 0 for name in found if name != "kept")
