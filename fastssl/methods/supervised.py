"""Supervised: cross-entropy of the labelled samples alone, the twin that every other method is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import option
from ..kernels import cross_entropy
from ..models import Network, Output
from ..pipelines.batch import Batch, DataSpec, Views
from ..schedules import Clock
from .base import Method, Terms
from .bricks.options import MethodOptions, UnlabelledOptions, but
from .bricks.shares import adjustment


class Supervised(Method):
    """Mean cross-entropy over the weak view of the labelled batch."""

    @dataclass(frozen=True)
    class Config(MethodOptions):
        logit_adjustment: float = but(UnlabelledOptions, "logit_adjustment", 0.0)
        smoothing: float = option(0.0, "label smoothing: a label keeps 1 - s, every other class gets s / (C - 1)", least=0, most=1)

    summary = "labelled samples alone"
    paper = "baseline"
    views = Views(labelled=("weak",))

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **options)
        self.register_buffer("prior", adjustment(spec, config.logit_adjustment), persistent=False)

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        smoothing = self.config.smoothing
        rows = cross_entropy(labelled[0].logits, batch.label, smoothing=smoothing, adjust=self.prior, sample_weight=batch.weight)
        return Terms(rows.mean(), {"loss_labelled": rows.detach().mean()})
