"""The foundation model's label as an input feature. A baseline of ZeroMatch (arXiv 2502.12584)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import option
from ..models import Network, Output
from ..pipelines.batch import Batch, DataSpec, Views
from ..schedules import Clock
from . import find
from .base import Method, Terms
from .bricks.foundation import GivenLabels, demand
from .bricks.inner import CARRIED, inner_config, make_inner
from .bricks.options import MethodOptions


class LabelAsFeature(Method):
    """The inner method on logits z(f) + E[y']: what a linear head on the features and the one-hot label y' side by side computes.

    A row without such a label has a row of E of its own. Test rows are judged with their labels too, so the file must have them
    (`fastssl pseudolabel --test-rows`), and images from elsewhere cannot be judged.
    """

    @dataclass(frozen=True)
    class Config(MethodOptions):
        inner: str = option("adamatch", "semi-supervised method that is trained", source="ZeroMatch code: adamatch", choices=CARRIED)
        inner_options: str = option("", "its options: name=value,name=value; an inner adamatch is USB's unless they say otherwise")

    summary = "a semi-supervised method that sees a foundation model's label of each sample as a feature"
    paper = "baseline of arXiv 2502.12584"
    views = Views(labelled=("weak",), unlabelled=("weak", "strong"), no_grad=1)
    judges_rows = True
    needs_foundation = True

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **options)
        demand(spec, "pl_feature")
        self.given = GivenLabels(spec)
        self.inner = make_inner(config.inner, find(config.inner), config.inner_options, network, spec, **options)
        self.embedding = nn.Parameter(torch.zeros(spec.num_classes + 1, spec.num_classes))

    @classmethod
    def views_of(cls, config: Any) -> Views:
        kind = find(config.inner)
        return kind.views_of(inner_config(config.inner, kind, config.inner_options))

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        known, others = self._added(batch.index), self._added(batch.unlabelled_index)
        terms = self.inner.objective(
            [Output(view.logits + known, view.features) for view in labelled],
            [Output(view.logits + others, view.features) for view in unlabelled],
            batch,
            clock,
        )
        terms.metrics["foundation_agreement"] = self.given.agreement(unlabelled[0].logits + others, batch.unlabelled_index)
        return terms

    def clean(self, unlabelled: list[Output], batch: Batch) -> Tensor:
        return unlabelled[0].logits + self._added(batch.unlabelled_index)

    def _added(self, index: Tensor) -> Tensor:
        label, weight = self.given.of(index)
        return self.embedding.index_select(0, torch.where(weight > 0, label, self.spec.num_classes))

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        self.inner.remember(batch, terms, clock)

    def finish(self, logits: Tensor, index: Tensor) -> Tensor:
        with torch.no_grad():
            return logits + self._added(index.to(self.embedding.device)).to(logits.device, logits.dtype)
