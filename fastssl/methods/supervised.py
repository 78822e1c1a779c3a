"""Supervised: cross-entropy of the labelled samples alone, the twin that every other method is measured against."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import option
from ..kernels import cross_entropy
from ..pipelines.batch import Batch, Views
from ..schedules import Clock
from .base import Method, Terms
from .bricks.forward import forward_views


class Supervised(Method):
    """Mean cross-entropy over the weak view of the labelled batch."""

    @dataclass(frozen=True)
    class Config:
        smoothing: float = option(0.0, "label smoothing: a label keeps 1 - s, every other class gets s / (C - 1)", least=0, most=1)

    summary = "labelled samples alone"
    paper = "baseline"
    views = Views(labelled=("weak",))

    def loss(self, batch: Batch, clock: Clock) -> Terms:
        (labelled,), _ = forward_views(self.network, batch, 0, self.weak_pass)
        rows = cross_entropy(labelled.logits, batch.label, smoothing=self.config.smoothing, sample_weight=batch.weight)
        return Terms(rows.mean(), {"loss_labelled": rows.detach().mean()})
