"""Contrast of two views of a batch: each row is to find its other view among all other rows (SimCLR)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEAST_LENGTH = 1e-6  # of a projected row, as TensorFlow's l2_normalize has it: a row of zeros stays one, its gradient finite


class NormedProjection(nn.Module):
    """Layers of linear, batch-norm and ReLU, the last without the ReLU; divided by its length: [N, d] -> [N, D] (SimCLR's code).

    In fp32 whatever the precision of the network, as similarities are divided by temperatures of 0.1. Always by the batch's statistics:
    the projection is gone before anything is predicted.

    Args:
        features: d. width: D. layers: how many, at least 1.
    """

    def __init__(self, features: int, width: int, layers: int):
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(layers - 1):
            parts += [nn.Linear(features, features, bias=False), nn.BatchNorm1d(features, track_running_stats=False), nn.ReLU()]
        last = nn.BatchNorm1d(width, track_running_stats=False)
        last.register_parameter("bias", None)  # the last layer is not moved from its centre
        self.layers = nn.Sequential(*parts, nn.Linear(features, width, bias=False), last)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return nn.functional.normalize(self.layers(features.to(self.layers[0].weight.dtype)), dim=1, eps=LEAST_LENGTH)


def similarities(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """[2N, 2N] inner products over T of all rows of both views ([N, D] of unit length), in fp32 at least; a row's own is -inf.

    Raises:
        ValueError: shapes that differ.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"contrast wants two [N, D] views, got {tuple(first.shape)} and {tuple(second.shape)}")
    with torch.autocast(first.device.type, enabled=False):  # at T = 0.1 a bf16 rounding would count tenfold
        rows = torch.cat([first, second])
        rows = rows if rows.dtype == torch.float64 else rows.float()
        places = torch.arange(len(rows), device=rows.device)
        return (rows @ rows.T / temperature).masked_fill(places[:, None] == places, -torch.inf)


def partners(logits: Tensor) -> Tensor:
    """[2N, 2N] -> [2N] int64: where each row's other view is."""
    return torch.arange(len(logits), device=logits.device).roll(len(logits) // 2)


def contrast_rows(logits: Tensor) -> Tensor:
    """[2N, 2N] of `similarities` -> [2N] loss of each row, over the 2N - 1 that it is not."""
    n = len(logits) // 2
    return logits.logsumexp(1) - torch.cat([logits.diagonal(n), logits.diagonal(-n)])  # each row's other view


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The loss of each row of both views, over the 2N - 1 rows that it is not (Chen et al. 2020a, arXiv 2002.05709, eq. 1).

    -log(exp(<h_i, h_j> / T) / sum over k != i of exp(<h_i, h_k> / T)), j the other view of i. Rows that show one sample twice in a batch
    count as others.

    Args:
        first: [N, D] of unit length, one view.
        second: [N, D] of unit length, the other, row for row.
        temperature: T, above 0.

    Returns:
        [2N] fp32 (float64 of float64), the first view's rows and then the second's. 0 where N is 1: nothing is to be told apart.

    Raises:
        ValueError: shapes that differ.
    """
    return contrast_rows(similarities(first, second, temperature))
