"""Classifier heads: linear, and cosine with a learnable scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LinearHead(nn.Linear):
    """[N, d] features -> [N, C] logits, computed in the features' autocast precision."""

    def set_weight(self, weight: Tensor) -> None:
        """Takes [C, d] rows as weight and zeroes the bias."""
        with torch.no_grad():
            self.weight.copy_(weight)
            self.bias.zero_()


class CosineHead(nn.Module):
    """z = s (f / |f|) (W / |W|_rows)^T: cosine similarity times a learnable scale, no bias, no epsilon (FineSSL, official code).

    Computed in fp32 whatever the autocast, because its logits reach +-s and feed a confidence.

    Args:
        features: d.
        classes: C.
        scale: start of s, used directly (no exponential).
    """

    def __init__(self, features: int, classes: int, scale: float = 1 / 0.07):
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.empty(classes, features).uniform_(-1, 1), dim=1))
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def set_weight(self, weight: Tensor) -> None:
        """Takes [C, d] rows, scaled to unit norm: only their direction counts."""
        with torch.no_grad():
            self.weight.copy_(F.normalize(weight, dim=1))

    def forward(self, features: Tensor) -> Tensor:
        """[N, d] -> [N, C] fp32 (float64 stays float64)."""
        with torch.autocast(features.device.type, enabled=False):
            f = features if features.dtype == torch.float64 else features.float()
            w = self.weight.to(f.dtype)
            return self.scale.to(f.dtype) * ((f / f.norm(dim=1, keepdim=True)) @ (w / w.norm(dim=1, keepdim=True)).T)
