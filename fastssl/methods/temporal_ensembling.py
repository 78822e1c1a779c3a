"""Temporal ensembling (Laine & Aila 2017): a prediction must agree with the running mean of the sample's earlier predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import option
from ..kernels import consistency_loss, cross_entropy
from ..models import Network, Output
from ..pipelines.batch import Batch, DataSpec, Views
from ..schedules import Clock
from .base import Method, Terms
from .bricks.consistency import (
    LABELLED,
    UNLABELLED,
    ConsistencyOptions,
    consistency_weight,
    noisy,
    probabilities,
    reduced,
    share_of_labels,
)
from .bricks.forward import forward_apart, forward_together
from .bricks.options import but
from .bricks.rows import VisitBank


class TemporalEnsembling(Method):
    """L = (1 / B) sum_labelled CE(y, z) + w(t) (1 / B) sum 1[n_i > 0] (1 / C) ||p_i - Z_i / (1 - a^n_i)||^2 (Laine & Aila, algorithm 2).

    After the step Z_i <- a Z_i + (1 - a) p_i and n_i <- n_i + 1 for the samples of the batch: by visits, where the paper has epochs; equal
    to it where each sample comes once an epoch. w(t) as in the Pi-model, with lambda_u 30.
    """

    @dataclass(frozen=True)
    class Config(ConsistencyOptions):
        lambda_u: float = but(ConsistencyOptions, "lambda_u", 30.0, "Laine & Aila 2017")
        momentum: float = option(
            0.6, "alpha: decay of a sample's ensemble of predictions", source="Laine & Aila 2017", least=0, most=0.9999
        )

    summary = "a prediction must agree with the mean of the sample's earlier predictions"
    paper = "Laine & Aila 2017, arXiv 1610.02242"
    views = Views(labelled=("weak",), unlabelled=("weak",))
    whole = 0  # what teaches is the bank, so that every view may be mixed

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **options)
        self.labels_share = share_of_labels(config, spec)
        self.bank = VisitBank(spec.rows, spec.num_classes, config.momentum)

    def loss(self, batch: Batch, clock: Clock) -> Terms:
        terms = super().loss(batch, clock)
        if self.config.mixup > 0:  # what the bank keeps of a sample is said of its own image
            with torch.no_grad():
                alone = forward_together(self.network, self.images(batch, clock), "batch")
            terms.memory["prediction"] = torch.cat([probabilities(view.logits) for view in alone])
        return terms

    def images(self, batch: Batch, clock: Clock) -> list[Tensor]:
        """Labelled and unlabelled view, with noise where it is asked for."""
        deviation = self.config.noise
        known = noisy(batch.labelled, batch.index, deviation, clock, use=LABELLED, network=self.network)
        return known + noisy(batch.unlabelled, batch.unlabelled_index, deviation, clock, use=UNLABELLED, network=self.network)

    def outputs(self, batch: Batch, clock: Clock) -> tuple[list[Output], list[Output]]:
        labelled, unlabelled = forward_together(self.network, self.images(batch, clock))
        return [labelled], [unlabelled]

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        known, other = labelled[0].logits, unlabelled[0].logits
        together, index = torch.cat([known, other]), torch.cat([batch.index, batch.unlabelled_index])
        first = len(known) if self.config.reduction == "streams" else 0  # of the rows in the consistency term
        target, seen = self.bank.read(index[first:])
        distances = consistency_loss(together[first:], target, teacher_is="probabilities", sample_weight=seen.to(target.dtype))
        rows = cross_entropy(known, batch.label, sample_weight=batch.weight)
        supervised, unsupervised = reduced(rows, distances, self.config.reduction)
        total = supervised + self.labels_share * consistency_weight(self.config, clock) * unsupervised
        metrics = {"loss_labelled": supervised.detach(), "loss_unlabelled": unsupervised.detach()}
        return Terms(total, metrics, {"prediction": probabilities(together.detach())})

    def clean(self, unlabelled: list[Output], batch: Batch) -> Tensor:
        if self.config.mixup > 0:
            return forward_apart(self.network, [batch.unlabelled[0]])[0].logits
        return unlabelled[0].logits

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        self.bank.write(torch.cat([batch.index, batch.unlabelled_index]), terms.memory["prediction"], clock.ok)
