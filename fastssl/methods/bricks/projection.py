"""A projection of features to the unit sphere, for losses that compare images with each other. Discarded at test."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projection(nn.Module):
    """Linear, ReLU, Linear, divided by its length: [N, d] -> [N, D] (CoMatch and SimMatch, codes).

    In fp32 whatever the precision of the network: similarities are divided by temperatures of 0.1, which would make a bf16 rounding count
    tenfold.

    Args:
        features: d. width: D.
    """

    def __init__(self, features: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, width))

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return nn.functional.normalize(self.layers(features.to(self.layers[0].weight.dtype)), dim=1)


def log_affinity(features: Tensor, others: Tensor, temperature: float) -> Tensor:
    """[N, D], [M, D] unit rows -> [N, M] log softmax over M of their inner products over the temperature."""
    with torch.autocast(features.device.type, enabled=False):
        return (features @ others.T / temperature).log_softmax(1)
