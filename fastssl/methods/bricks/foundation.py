"""A foundation model's labels of the data set's rows, as a method reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import cross_entropy
from ...pipelines.batch import DataSpec
from ...pipelines.errors import ConfigError


class GivenLabels(nn.Module):
    """Labels and weights by row. They are constants: in no checkpoint (the run's configuration names their file), and never put back.

    Args:
        spec: with `foundation`; without it every label is missing.
    """

    guards_itself = True
    label: Tensor
    weight: Tensor

    def __init__(self, spec: DataSpec):
        super().__init__()
        known = spec.foundation
        label = torch.full((spec.rows,), -1) if known is None else torch.from_numpy(known.label)
        weight = torch.zeros(spec.rows) if known is None else torch.from_numpy(known.weight)
        self.register_buffer("label", label, persistent=False)
        self.register_buffer("weight", weight, persistent=False)

    def of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """[n] rows -> [n] labels (0 where missing), [n] weights (0 where missing)."""
        label, weight = self.label.index_select(0, index), self.weight.index_select(0, index)
        return label.clamp(min=0), torch.where(label >= 0, weight, 0.0)

    def rows(self, logits: Tensor, index: Tensor) -> Tensor:
        """[n] weighted cross-entropy of [n, C] logits against the labels of rows [n]; 0 where a label is missing."""
        label, weight = self.of(index)
        return cross_entropy(logits, label, sample_weight=weight.to(torch.float32))

    def agreement(self, logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """(rows whose argmax is the given label, rows with a label): a metric."""
        label, weight = self.of(index)
        there = weight > 0
        return ((logits.detach().argmax(1) == label) & there).float().sum(), there.float().sum()


def demand(spec: DataSpec, name: str) -> None:
    """Raises ConfigError where a method that learns from foundation labels was given none."""
    if spec.foundation is None:
        raise ConfigError(
            f"{name} learns from a foundation model's labels: give --foundation-labels FILE (id,label); fastssl pseudolabel writes one"
        )
