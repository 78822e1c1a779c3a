"""Pseudo-supervision: a foundation model's labels taken for true. A baseline of ZeroMatch (arXiv 2502.12584)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import option
from ..kernels import cross_entropy
from ..models import Network, Output
from ..pipelines.batch import Batch, DataSpec, Views
from ..schedules import Clock
from .base import Method, Terms
from .bricks.foundation import GivenLabels, demand
from .bricks.options import MethodOptions


class PseudoSupervision(Method):
    """L = mean CE(y, z(weak of x)) + lambda_u mean CE(y', z(weak of u)), y' the foundation model's label; missing labels count as 0."""

    @dataclass(frozen=True)
    class Config(MethodOptions):
        lambda_u: float = option(1.0, "weight of the foundation labels' term", source="ours: the paper gives none", least=0)

    summary = "supervised training on a foundation model's labels beside the true ones"
    paper = "baseline of arXiv 2502.12584"
    views = Views(labelled=("weak",), unlabelled=("weak",), no_grad=0)
    needs_foundation = True
    whole = 0

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **options)
        demand(spec, "pseudo_supervision")
        self.given = GivenLabels(spec)

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        supervised = cross_entropy(labelled[0].logits, batch.label, sample_weight=batch.weight).mean()
        given = self.given.rows(unlabelled[0].logits, batch.unlabelled_index).mean()
        metrics = {
            "loss_labelled": supervised.detach(),
            "loss_foundation": given.detach(),
            "foundation_agreement": self.given.agreement(unlabelled[0].logits, batch.unlabelled_index),
        }
        return Terms(supervised + self.config.lambda_u * given, metrics)
