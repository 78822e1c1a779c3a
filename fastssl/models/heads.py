"""Classifier heads: linear, cosine with a learnable scale, and one with a hidden layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..pipelines.errors import ConfigError


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


class ProjectedHead(nn.Module):
    """Linear, batch-norm, ReLU, linear: [N, d] features -> [N, h] hidden -> [N, C] logits, which are 0 at the start.

    The hidden layer is the first of SimCLRv2's projection (Chen et al. 2020b, arXiv 2006.10029, section 2): it is trained by contrast and
    stays in the network that is judged.

    Args:
        features: d.
        classes: C.
        width: h; d if None.
    """

    def __init__(self, features: int, classes: int, width: int | None = None):
        super().__init__()
        width = width or features
        self.linear = nn.Linear(features, width, bias=False)  # batch-norm adds one
        self.norm = nn.BatchNorm1d(width)
        self.classifier = nn.Linear(width, classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    @property
    def width(self) -> int:
        return self.linear.out_features

    def hidden(self, features: Tensor) -> Tensor:
        """[N, d] -> [N, h]. One row alone has no variance: it is seen by the running statistics, in training too, and moves none."""
        h, norm = self.linear(features), self.norm
        if len(h) == 1:
            return F.relu(F.batch_norm(h, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps))
        return F.relu(norm(h))

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.hidden(features))


def kind_of(head: nn.Module) -> str:
    """The name (`model.head`) of a head's kind."""
    return "cosine" if isinstance(head, CosineHead) else "projected" if isinstance(head, ProjectedHead) else "linear"


def demand_one_layer(head: nn.Module, what: str) -> None:
    """Raises ConfigError where the head has a hidden layer, whose batch-norm `what` cannot do with."""
    if isinstance(head, ProjectedHead):
        raise ConfigError(f"{what} needs a head of one layer, and model.head=projected has a hidden one; give --set model.head=linear")


def make_head(kind: str, features: int, classes: int, *, scale: float, width: int | None) -> nn.Module:
    """The head of that kind (`model.head`); `scale` is of a cosine head, `width` of a projected one."""
    if kind == "cosine":
        return CosineHead(features, classes, scale)
    return ProjectedHead(features, classes, width) if kind == "projected" else LinearHead(features, classes)
